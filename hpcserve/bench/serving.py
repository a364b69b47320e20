"""`hpcserve bench serving`: warm-up, repeats and sweeps against a running server."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from hpcserve.bench.client_pool import Load, LoadResult, run_load
from hpcserve.bench.completion import RequestStyle
from hpcserve.bench.goodput import Goodput
from hpcserve.bench.load_point import LoadPoint
from hpcserve.bench.metrics import Figures, figures_of
from hpcserve.bench.probe import Server
from hpcserve.bench.request import BenchRequest, chains_of
from hpcserve.bench.roofline import Hardware, ModelCost
from hpcserve.bench.summary import summarize
from hpcserve.bench.workloads.base import Workload
from hpcserve.errors import EngineError

#: Runs are numbered, so that each gets token ids of its own.
_RUNS_PER_POINT = 1000
_MOST_WARMUP = 256
#: Above this share of a core the client itself may be what limits the figures.
_BUSY = 0.8

Draw = Callable[[int], list[BenchRequest]]


@dataclass(frozen=True)
class ServingPlan:
    """draw: run number -> requests.  workload: None for a trace file.

    warmup: requests before each point, with ids of their own; None is one per stream, at most 256.
    cost: None where the model's shape is not known; MFU and MBU are then left out.
    """

    server: Server
    style: RequestStyle
    draw: Draw
    points: list[LoadPoint]
    workload: Workload | None = None
    seed: int = 0
    repeats: int = 1
    warmup: int | None = None
    flush_cache: bool = False
    num_processes: int = 1
    timeout_s: float = 3600.0
    goodput: Goodput | None = None
    cost: ModelCost | None = None
    hardware: Hardware = field(default_factory=Hardware)
    profile: Path | None = None


class ServingBenchmark:
    """Runs a plan. `say` gets one-line notes for people."""

    def __init__(self, plan: ServingPlan, say: Callable[[str], None]) -> None:
        self._plan = plan
        self._say = say

    def run(self) -> list[dict[str, Any]]:
        """One cell per point: its load, the figures of each repeat, and their summary."""
        cells = []
        for number, point in enumerate(self._plan.points):
            first_run = number * _RUNS_PER_POINT
            self._warm_up(point, first_run)
            runs = []
            for repeat in range(self._plan.repeats):
                runs.append(self._measure(point, first_run + 1 + repeat))
                self._say(_partial(point, repeat, runs[-1]))
            cells.append({"load": point.describe(), "runs": runs, "summary": summarize(runs)})
        return cells

    def _warm_up(self, point: LoadPoint, run: int) -> None:
        plan = self._plan
        requests = plan.draw(run)
        streams = point.concurrency or _MOST_WARMUP
        count = min(streams, _MOST_WARMUP) if plan.warmup is None else plan.warmup
        requests = [msgspec.structs.replace(one, think_s=0.0) for one in requests[:count]]
        if not requests:
            return
        concurrency = min(streams, len(chains_of(requests)))
        load = Load(concurrency, arrivals=False, timeout_s=plan.timeout_s)
        result = run_load(plan.server.base_url, plan.style, requests, load)
        failed = [one for one in result.records if not one.ok]
        if len(failed) == len(requests):
            raise EngineError(
                f"all {len(failed)} warm-up requests failed; the first: "
                f"{failed[0].error}: {failed[0].error_text}"
            )

    def _measure(self, point: LoadPoint, run: int) -> Figures:
        plan = self._plan
        if plan.flush_cache and not plan.server.flush_cache():
            self._say("the server offers no way to flush its cache; token ids are fresh anyway")
        requests = point.schedule(plan.draw(run), plan.seed)
        keep_text = plan.workload is not None and plan.workload.keeps_text
        load = point.load(
            num_processes=plan.num_processes, timeout_s=plan.timeout_s, keep_text=keep_text
        )
        with self._profiled(), _bar(point.label, len(requests)) as advance:
            result = run_load(plan.server.base_url, plan.style, requests, load, advance)
        figures = figures_of(
            requests, result.records, goodput=plan.goodput, cost=plan.cost, hardware=plan.hardware
        )
        if plan.workload is not None:
            figures |= plan.workload.judge(requests, result.records)
        return figures | self._client(result, figures)

    def _client(self, result: LoadResult, figures: Figures) -> Figures:
        """The client's own share of the time."""
        busiest = max(result.cpu_shares)
        if busiest > _BUSY:
            self._say(
                f"a client process used {busiest:.0%} of a core: the client may be the bottleneck; "
                "give it more with --client-processes"
            )
        chunks = sum(len(one.chunk_times) for one in result.records) // 8
        return {
            "client_processes": len(result.cpu_shares),
            "client_cpu_share_max": busiest,
            "client_cpu_share_mean": sum(result.cpu_shares) / len(result.cpu_shares),
            "client_chunks_per_s": chunks / figures["duration_s"] if figures["duration_s"] else 0.0,
        }

    @contextmanager
    def _profiled(self) -> Iterator[None]:
        folder = self._plan.profile
        if folder is None:
            yield
            return
        if not self._plan.server.start_profile(folder):
            self._say("no profile: this server has no /start_profile")
            yield
            return
        try:
            yield
        finally:
            files = self._plan.server.stop_profile()
        for file in files or [str(folder)]:
            self._say(f"profile: {file}")


def _partial(point: LoadPoint, repeat: int, figures: Figures) -> str:
    failed = f", {figures['num_errors']} failed" if figures["num_errors"] else ""
    return (
        f"{point.label}, run {repeat + 1}: {figures['output_tok_s']:,.0f} output tok/s, "
        f"{figures['duration_s']:.2f} s{failed}"
    )


@contextmanager
def _bar(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr where that is a terminal; gives what advances it to a count."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total)
        yield lambda done: progress.update(task, completed=done)
