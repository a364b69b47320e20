"""What the stages of a pipeline must be told: the last one samples what the first one reads."""

from __future__ import annotations

import numpy as np

from hpcserve.ipc.messages import SchedulerOutput
from hpcserve.scheduler.request import Request, RequestStatus


class StageNews:
    """Sampled tokens that no step has told yet."""

    def __init__(self) -> None:
        # (request, position, token id)
        self._untold: list[tuple[Request, int, int]] = []

    def add(self, request: Request, token_id: int) -> None:
        """A request's newest known token."""
        self._untold.append((request, request.num_known - 1, token_id))

    def tell(self, output: SchedulerOutput) -> None:
        """Put them into the next step; a request that left its slot needs none."""
        told = [one for one in self._untold if one[0].status is RequestStatus.RUNNING]
        self._untold = []
        output.known_slots = np.array([request.slot for request, _, _ in told], np.int32)
        output.known_positions = np.array([position for _, position, _ in told], np.int32)
        output.known_token_ids = np.array([token_id for _, _, token_id in told], np.int32)
