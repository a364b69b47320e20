"""A scheduler with a worker that checks every page it reads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from hpcserve.config.scheduler import SchedulerConfig
from hpcserve.engine.executor import StepHandle
from hpcserve.fake_worker import FakeExecutor, expected_tokens
from hpcserve.ipc.messages import EngineCoreRequest
from hpcserve.kvcache.no_reuse import NoReuse
from hpcserve.kvcache.radix import RadixCache
from hpcserve.sampling_params import SamplingParams
from hpcserve.scheduler.scheduler import Scheduler


@dataclass
class Bench:
    """A scheduler, a checking worker, and `depth` steps in flight."""

    VOCAB: ClassVar = 50
    EOS: ClassVar = 7

    scheduler: Scheduler
    executor: FakeExecutor
    depth: int

    def __post_init__(self) -> None:
        self.in_flight: deque[StepHandle] = deque()
        self.outputs: dict[int, list[int]] = {}
        self.finished: dict[int, tuple[str, int]] = {}

    def add(
        self,
        request_id: int,
        prompt: list[int],
        max_tokens: int | None = None,
        *,
        priority: int = 0,
        **more,
    ) -> None:
        params = SamplingParams(max_tokens=max_tokens, **more)
        tokens = np.array(prompt, np.int32)
        message = EngineCoreRequest(request_id, tokens, params, priority, float(request_id))
        self.scheduler.add(message)
        self.outputs[request_id] = []

    def step(self) -> bool:
        """Issue a step and read the oldest result; False where nothing is left to do."""
        issued = None
        if len(self.in_flight) < self.depth:
            issued = self.scheduler.schedule()
            if issued is not None:
                self.in_flight.append(self.executor.submit(issued))
        if self.in_flight and (issued is None or len(self.in_flight) == self.depth):
            for update in self.scheduler.update(self.in_flight.popleft().result()):
                self.outputs[update.request.request_id].append(update.token_id)
                if update.finished:
                    done = (update.finished.finish_reason, update.finished.num_cached_tokens)
                    self.finished[update.request.request_id] = done
        return bool(self.in_flight) or self.scheduler.has_requests

    def run(self, most: int = 20_000) -> None:
        for _ in range(most):
            if not self.step():
                break
        else:
            raise AssertionError("it never came to an end")
        self.scheduler.check_idle()

    def expected(
        self, prompt: list[int], max_tokens: int, *, ignore_eos: bool = False
    ) -> list[int]:
        """What the worker says after a prompt, computed on its own."""
        ends = frozenset() if ignore_eos else frozenset({self.EOS})
        return expected_tokens(prompt, max_tokens, vocab_size=self.VOCAB, stop_ids=ends)


def _make_bench(
    *,
    num_pages: int = 64,
    page_size: int = 4,
    max_running: int = 8,
    chunk: int = 16,
    policy: str = "fcfs",
    depth: int = 2,
    radix: bool = True,
    context: int = 120,
    max_queued: int | None = None,
) -> Bench:
    config = SchedulerConfig(
        max_running_requests=max_running,
        chunked_prefill_size=chunk,
        schedule_policy=policy,
        max_queued_requests=max_queued,
    )
    cache = RadixCache(page_size) if radix else NoReuse(page_size)
    scheduler = Scheduler(
        config, cache, num_pages, context_length=context, eos_token_ids=(Bench.EOS,)
    )
    executor = FakeExecutor(
        num_pages=num_pages,
        page_size=page_size,
        max_slots=max_running,
        context_length=context,
        vocab_size=Bench.VOCAB,
    )
    return Bench(scheduler, executor, depth)


@pytest.fixture(scope="session")
def make_bench() -> Callable[..., Bench]:
    """Session: hypothesis runs a test many times with one."""
    return _make_bench
