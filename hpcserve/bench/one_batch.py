"""`hpcserve bench one-batch`: prefill and decode steps straight on the executor.

No scheduler, no cache, no requests that come and go: what the model's steps cost, with the floor of
the roofline beside each figure.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hpcserve.bench.joint_steps import JointStepMaker
from hpcserve.bench.percentiles import distribution, spread
from hpcserve.bench.roofline import Hardware, ModelCost
from hpcserve.bench.step_maker import StepMaker
from hpcserve.config.checkpoint import CheckpointConfig
from hpcserve.config.engine import EngineConfig
from hpcserve.engine.executor import Executor, StepHandle
from hpcserve.ipc.messages import LockstepOutput, SchedulerOutput

#: Decode steps before the measured ones: graphs are captured, clocks go up.
_WARM_STEPS = 8

Row = dict[str, Any]


def run_one_batch(
    config: EngineConfig,
    *,
    batch_sizes: list[int],
    input_lens: list[int],
    num_steps: int,
    depth: int,
    repeats: int,
    hardware: Hardware,
    say: Callable[[str], None],
) -> list[Row]:
    """One row for each batch size and input length; `skipped` says why one could not run.

    depth: steps under way at once.
    """
    from hpcserve.engine.core import make_executor
    from hpcserve.engine.model_folder import with_model_folder

    config = with_model_folder(config)
    slots = max(*batch_sizes, config.scheduler.max_running_requests)
    config = config.replace(max_running_requests=slots)
    cost = ModelCost.of(CheckpointConfig.load(Path(config.model.model)))
    executor = make_executor(config)
    bench = StepBench(executor, config, num_steps=num_steps, depth=depth)
    rows = []
    try:
        for input_len in input_lens:
            for batch_size in batch_sizes:
                row = bench.measure(batch_size, input_len, repeats)
                rows.append(row if "skipped" in row else add_floors(row, cost, hardware))
                say(f"batch {batch_size} x {input_len}: {row.get('skipped', 'done')}")
    finally:
        executor.shutdown()
    return rows


class StepBench:
    """Times steps on one executor."""

    def __init__(
        self, executor: Executor, config: EngineConfig, *, num_steps: int, depth: int
    ) -> None:
        self._executor = executor
        self._num_steps, self._depth = num_steps, depth
        together = config.parallel.enable_dp_attention
        makers = [
            StepMaker(
                executor.info,
                page_size=config.cache.page_size,
                token_budget=config.scheduler.chunked_prefill_size,
            )
            for _ in range(config.parallel.dp_size if together else 1)
        ]
        self._steps = JointStepMaker(makers) if together else makers[0]

    def measure(self, batch_size: int, input_len: int, repeats: int) -> Row:
        """Milliseconds of the whole prefill and of single decode steps.

        The first pass over a cell is not counted.
        """
        row: Row = {
            "batch_size": batch_size,
            "input_len": input_len,
            "num_steps": self._num_steps,
            "depth": self._depth,
        }
        reason = self._steps.obstacle(batch_size, input_len, self._num_steps + _WARM_STEPS)
        if reason:
            return {**row, "skipped": reason}
        prefills, medians, decodes = [], [], []
        for repeat in range(repeats + 1):
            prefill_s = sum(self._times(self._steps.prefill(batch_size, input_len, repeat), 1))
            count = self._num_steps + _WARM_STEPS
            times = self._times(self._steps.decode(batch_size, input_len, count), self._depth)
            if repeat:
                prefills.append(prefill_s * 1e3)
                decodes += [seconds * 1e3 for seconds in times[_WARM_STEPS:]]
                medians.append(float(np.median(times[_WARM_STEPS:])) * 1e3)
        row["prefill_ms"] = spread(prefills)
        row["decode_ms"] = spread(medians)
        row["decode_step_ms"] = distribution(decodes)
        row["prefill_tok_s"] = batch_size * input_len / row["prefill_ms"]["median"] * 1e3
        row["decode_tok_s"] = batch_size / row["decode_ms"]["median"] * 1e3
        return row

    def _times(self, steps: Iterator[SchedulerOutput | LockstepOutput], depth: int) -> list[float]:
        """Seconds from each step's result to the next one's; the first from its own start."""
        times = []
        waiting: deque[StepHandle] = deque()
        last = time.perf_counter()
        for step in steps:
            waiting.append(self._executor.submit(step))
            if len(waiting) == depth:
                waiting.popleft().result()
                last, before = time.perf_counter(), last
                times.append(last - before)
        while waiting:
            waiting.popleft().result()
            last, before = time.perf_counter(), last
            times.append(last - before)
        return times


def add_floors(row: Row, cost: ModelCost, hardware: Hardware) -> Row:
    """The roofline's milliseconds, and which share of it the measured ones reach."""
    batch_size, input_len = row["batch_size"], row["input_len"]
    context = input_len + row["num_steps"] / 2
    decode = cost.decode_floor_s(batch_size, context, hardware) * 1e3
    prefill = cost.prefill_floor_s(batch_size, input_len, hardware) * 1e3
    measured_s = row["decode_ms"]["median"] / 1e3
    return {
        **row,
        "prefill_floor_ms": prefill,
        "prefill_share_of_floor": prefill / row["prefill_ms"]["median"],
        "decode_floor_ms": decode,
        "decode_share_of_floor": decode / row["decode_ms"]["median"],
        "mbu": cost.decode_bytes(batch_size, context) / (measured_s * hardware.bandwidth),
    }


def print_rows(rows: list[Row]) -> None:
    """A table for people, whole in 80 columns."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    titles = (
        "batch",
        "input",
        "prefill\nms",
        "floor",
        "tok/s",
        "decode\nms",
        "floor",
        "MBU",
        "tok/s",
    )
    table = Table(*titles, title="one batch", title_justify="left", box=SIMPLE_HEAD)
    table.padding, table.pad_edge = (0, 1, 0, 0), False
    for column in table.columns:
        column.justify, column.no_wrap = "right", True
    console, left_out = Console(), []
    for row in rows:
        if "skipped" in row:
            left_out.append(f"batch {row['batch_size']} x {row['input_len']}: {row['skipped']}")
            continue
        table.add_row(
            str(row["batch_size"]),
            str(row["input_len"]),
            f"{row['prefill_ms']['median']:,.2f}",
            f"{row['prefill_floor_ms']:,.2f}",
            f"{row['prefill_tok_s']:,.0f}",
            f"{row['decode_ms']['median']:,.3f}",
            f"{row['decode_floor_ms']:,.3f}",
            f"{row['mbu']:.1%}",
            f"{row['decode_tok_s']:,.0f}",
        )
    if table.rows:
        console.print(table)
    for line in left_out:
        console.print(line, markup=False)
