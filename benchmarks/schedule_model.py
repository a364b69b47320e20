"""The real scheduler against a model of the device's time: what a policy does, without a GPU.

    python benchmarks/schedule_model.py --preset c256
    python benchmarks/schedule_model.py --preset sharegpt --set max_running_requests=2048

Requests of a preset of `hpcserve bench serving` go through the engine's scheduler on a clock that
counts what its steps would take: linear layers by tokens, reads of KV, attention of prompts. The
costs come from a file of measured figures. Prints one JSON object: throughput, and percentiles of
the time to the first token (TTFT) and per output token (TPOT).
"""

from __future__ import annotations

import argparse
import heapq
import json
from collections import deque
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from hpcserve.bench.presets import find_preset
from hpcserve.bench.request import BenchRequest
from hpcserve.bench.token_source import TokenSource
from hpcserve.bench.workloads.base import make_workload
from hpcserve.config.engine import EngineConfig
from hpcserve.ipc.messages import EngineCoreRequest, ModelRunnerOutput, SchedulerOutput
from hpcserve.kvcache.radix import RadixCache
from hpcserve.sampling_params import SamplingParams
from hpcserve.scheduler.scheduler import Scheduler

COSTS = Path(__file__).parent / "results" / "2026-11-21-step-costs-h200-llama-8b.json"
#: From an answer's last token to the next request of its stream.
TURNAROUND_S = 0.008
#: Of the core, between two steps.
CORE_S = 0.0003
STEPS_UNDER_WAY = 2


@dataclass(frozen=True)
class Costs:
    """What a step takes on one device.

    linear_ms: of all linear layers, by tokens in the step; between these, a straight line.
    attention_flop_per_pair: of one query with one key, in all layers.
    mixed_ms: more, where a step has prompts, which no CUDA graph runs.
    """

    linear_ms: dict[str, float]
    kv_bytes_per_token: float
    kv_bytes_per_s: float
    attention_flop_per_pair: float
    attention_flop_per_s: float
    mixed_ms: float
    num_kv_tokens: int
    context_length: int

    @classmethod
    def read(cls, path: Path) -> Costs:
        known = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{field.name: known[field.name] for field in fields(cls)})

    def seconds(self, step: SchedulerOutput) -> float:
        num = step.num_decodes
        read = int(step.num_computed[:num].sum()) * self.kv_bytes_per_token
        new = step.num_scheduled[num:].astype(np.float64)
        pairs = float((new * (step.num_computed[num:] + new / 2)).sum())
        sizes = [int(size) for size in self.linear_ms]
        tokens = int(step.num_scheduled.sum())
        linear_ms = float(np.interp(tokens, sizes, list(self.linear_ms.values())))
        linear_ms *= max(1.0, tokens / sizes[-1])
        attention_s = pairs * self.attention_flop_per_pair / self.attention_flop_per_s
        mixed_ms = self.mixed_ms if len(new) else 0.0
        return (linear_ms + mixed_ms) / 1e3 + read / self.kv_bytes_per_s + attention_s


class Run:
    """One run: requests come at their times, steps end at theirs.

    concurrency: streams, each of which sends its next request when the last is answered; None
    sends all at once.
    """

    def __init__(
        self,
        requests: list[BenchRequest],
        scheduler: Scheduler,
        costs: Costs,
        concurrency: int | None,
    ) -> None:
        self._requests = requests
        self._scheduler = scheduler
        self._costs = costs
        self._to_send = deque(range(len(requests)))
        self._arriving: list[tuple[float, int]] = []
        self._steps: deque[tuple[SchedulerOutput, float]] = deque()
        self._now = self._free_at = 0.0
        self._last_end: float | None = None
        self.num_steps = 0
        self.sent = np.zeros(len(requests))
        self.first = np.zeros(len(requests))
        self.last = np.zeros(len(requests))
        for _ in range(min(concurrency or len(requests), len(requests))):
            self._send(0.0)

    def run(self) -> None:
        """Until every request is answered; the same order as in EngineCore's loop."""
        while self._arriving or self._steps or self._scheduler.has_requests:
            self._receive()
            step = None
            if len(self._steps) < STEPS_UNDER_WAY:
                step = self._scheduler.schedule()
            if step is not None:
                self.num_steps += 1
                self._free_at = max(self._free_at, self._now) + self._costs.seconds(step)
                self._steps.append((step, self._free_at))
            if self._steps and (step is None or len(self._steps) == STEPS_UNDER_WAY):
                self._take_result()
            elif step is None:
                self._now = max(self._now, self._arriving[0][0])

    def _send(self, now: float) -> None:
        if self._to_send:
            index = self._to_send.popleft()
            self.sent[index] = now
            heapq.heappush(self._arriving, (now + TURNAROUND_S / 2, index))

    def _receive(self) -> None:
        while self._arriving and self._arriving[0][0] <= self._now:
            _, index = heapq.heappop(self._arriving)
            request = self._requests[index]
            params = SamplingParams(max_tokens=request.max_tokens, ignore_eos=True)
            prompt = np.array(request.prompt_token_ids, np.int32)
            self._scheduler.add(EngineCoreRequest(index, prompt, params))

    def _take_result(self) -> None:
        step, end = self._steps.popleft()
        self._now = max(self._now, end)
        duration = None if self._last_end is None else self._now - self._last_end
        self._last_end = self._now if self._steps else None
        tokens = np.where(step.samples > 0, 7, -1).astype(np.int32)
        for update in self._scheduler.update(ModelRunnerOutput(step.step_id, tokens), duration):
            index = update.request.request_id
            if len(update.request.output_token_ids) == 1:
                self.first[index] = self._now
            if update.finished is not None:
                self.last[index] = self._now
                self._send(self._now + TURNAROUND_S / 2)
        self._now += CORE_S


def simulate(preset: str, options: dict[str, Any], costs: Costs) -> dict[str, Any]:
    chosen = find_preset(preset)
    source = TokenSource.make(seed=0, run=1)
    requests = make_workload(chosen.workload, dict(chosen.values)).build(source)
    config = EngineConfig.from_options({"model": "none", **options})
    page_size = config.cache.page_size
    scheduler = Scheduler(
        config.scheduler,
        RadixCache(page_size),
        costs.num_kv_tokens // page_size,
        context_length=costs.context_length,
    )
    run = Run(requests, scheduler, costs, chosen.concurrency)
    run.run()
    num_out = np.array([request.max_tokens for request in requests])
    ttft_ms = (run.first - run.sent) * 1e3
    tpot_ms = (run.last - run.first) / np.maximum(num_out - 1, 1) * 1e3
    duration_s = float(run.last.max())
    return {
        "preset": preset,
        "options": options,
        "duration_s": round(duration_s, 2),
        "output_tok_s": round(int(num_out.sum()) / duration_s),
        "ttft_ms": {name: round(value) for name, value in _percentiles(ttft_ms).items()},
        "tpot_ms": {name: round(value, 1) for name, value in _percentiles(tpot_ms).items()},
        "num_steps": run.num_steps,
    }


def _percentiles(values: np.ndarray[Any, Any]) -> dict[str, float]:
    return {f"p{share}": float(np.percentile(values, share)) for share in (50, 90, 99)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--preset", default="c256")
    parser.add_argument("--costs", type=Path, default=COSTS, help="file of measured costs")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="an option of the engine"
    )
    words = parser.parse_args()
    options = {
        name: json.loads(value) for name, _, value in (one.partition("=") for one in words.set)
    }
    print(json.dumps(simulate(words.preset, options, Costs.read(words.costs))))


if __name__ == "__main__":
    main()
