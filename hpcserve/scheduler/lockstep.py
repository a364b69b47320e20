"""Several schedulers that step together: replicas with their own KV, whose experts are shared.

Every step of one is a step of all, since all ranks take part in every mixture of experts; a
replica without work gets an empty one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from hpcserve.ipc.lockstep import joint_step
from hpcserve.ipc.messages import (
    EngineCoreRequest,
    Int32Array,
    LockstepOutput,
    ModelRunnerOutput,
    SchedulerStats,
)
from hpcserve.scheduler.request import Request
from hpcserve.scheduler.scheduler import Scheduler, TokenUpdate

#: (prompt, open requests of each replica) -> the replica that takes it.
Choose = Callable[[Int32Array, Mapping[int, int]], int]


class LockstepScheduler:
    """Used like one Scheduler; results are those of all replicas, one's rows after another's."""

    def __init__(self, schedulers: Sequence[Scheduler], choose: Choose) -> None:
        self._schedulers = list(schedulers)
        self._choose = choose
        self._step_id = 0
        # For each step in flight, which replicas had rows in it, and how many.
        self._num_rows: list[list[int]] = []
        self.context_length = min(one.context_length for one in schedulers)
        self.page_size = schedulers[0].page_size

    @property
    def num_pages(self) -> int:
        return sum(one.num_pages for one in self._schedulers)

    @property
    def has_requests(self) -> bool:
        return any(one.has_requests for one in self._schedulers)

    def add(self, message: EngineCoreRequest, frontend: bytes = b"") -> Request:
        """Queue a request at the replica that suits it; raises what Scheduler.add raises."""
        loads = {index: len(one.requests) for index, one in enumerate(self._schedulers)}
        chosen = self._choose(message.prompt_token_ids, loads)
        return self._schedulers[chosen].add(message, frontend)

    def abort(self, request_id: int, frontend: bytes = b"") -> bool:
        return any(one.abort(request_id, frontend) for one in self._schedulers)

    def abort_all(self, frontend: bytes) -> None:
        for one in self._schedulers:
            one.abort_all(frontend)

    def schedule(self) -> LockstepOutput | None:
        """A step of all replicas, or None where none can run."""
        steps = [one.schedule() for one in self._schedulers]
        if not any(steps):
            return None
        self._step_id += 1
        self._num_rows.append([0 if step is None else len(step.slots) for step in steps])
        return joint_step(self._step_id, steps)

    def update(
        self, output: ModelRunnerOutput, duration_s: float | None = None
    ) -> list[TokenUpdate]:
        """Take in the result of the oldest step in flight."""
        updates: list[TokenUpdate] = []
        first = 0
        for one, count in zip(self._schedulers, self._num_rows.pop(0), strict=True):
            if count == 0:
                continue
            for update in one.update(_rows(output, first, count), duration_s):
                updates.append(msgspec.structs.replace(update, row=update.row + first))
            first += count
        return updates

    def flush_cache(self) -> int:
        return sum(one.flush_cache() for one in self._schedulers)

    def check_idle(self) -> None:
        for one in self._schedulers:
            one.check_idle()

    def stats(self) -> SchedulerStats:
        """Sums over the replicas."""
        return total_stats([one.stats() for one in self._schedulers])


def total_stats(stats: Sequence[SchedulerStats]) -> SchedulerStats:
    """Gauges of several replicas as those of one engine: pages, requests and counters add up."""
    names = [field.name for field in msgspec.structs.fields(SchedulerStats)]
    return SchedulerStats(**{name: sum(getattr(one, name) for one in stats) for name in names})


def _rows(output: ModelRunnerOutput, first: int, count: int) -> ModelRunnerOutput:
    """One replica's rows of a joint result, counted from its own first."""
    rows = range(first, first + count)
    logprobs, prompts = output.logprobs, output.prompt_logprobs
    return ModelRunnerOutput(
        output.step_id,
        output.sampled_token_ids[first : first + count],
        logprobs and {row - first: logprobs[row] for row in logprobs if row in rows},
        prompts and {row - first: prompts[row] for row in prompts if row in rows},
    )
