"""Steps of replicas that share experts, made into one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hpcserve.ipc.messages import LockstepOutput, SchedulerOutput


def joint_step(step_id: int, steps: Sequence[SchedulerOutput | None]) -> LockstepOutput:
    """steps: of each replica, None for one without work, which gets an empty step."""
    whole = [_empty_step() if step is None else step for step in steps]
    counts = [int(step.num_scheduled.sum()) for step in whole]
    all_decode = all(len(step.slots) == step.num_decodes for step in whole)
    for step in whole:
        step.step_id = step_id
        step.replica_tokens, step.all_decode = counts, all_decode
    return LockstepOutput(step_id, whole)


def _empty_step() -> SchedulerOutput:
    nothing = np.zeros(0, np.int32)
    return SchedulerOutput(
        step_id=0,
        slots=nothing,
        num_computed=nothing,
        num_scheduled=nothing,
        samples=nothing,
        num_decodes=0,
        released_slots=[],
        new_requests=[],
        new_page_slots=nothing,
        new_page_indices=nothing,
        new_page_ids=nothing,
    )
