"""Steps of replicas that share experts: a batch dealt out to them, stepping together."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest

from hpcserve.bench.step_maker import StepMaker
from hpcserve.ipc.lockstep import joint_step
from hpcserve.ipc.messages import LockstepOutput, SchedulerOutput


class JointStepMaker:
    """Used like a StepMaker; one for each replica makes its rows."""

    def __init__(self, makers: list[StepMaker]) -> None:
        self._makers = makers
        self._step_id = 0

    def obstacle(self, batch_size: int, input_len: int, num_steps: int) -> str:
        return self._makers[0].obstacle(self._shares(batch_size)[0], input_len, num_steps)

    def prefill(self, batch_size: int, input_len: int, seed: int) -> Iterator[LockstepOutput]:
        return self._together(
            maker.prefill(share, input_len, seed + 1000 * index)
            for index, (maker, share) in enumerate(self._active(batch_size))
        )

    def decode(self, batch_size: int, input_len: int, num_steps: int) -> Iterator[LockstepOutput]:
        return self._together(
            maker.decode(share, input_len, num_steps) for maker, share in self._active(batch_size)
        )

    def _shares(self, batch_size: int) -> list[int]:
        """Rows of each replica, the first ones take the remainder."""
        each, more = divmod(batch_size, len(self._makers))
        return [each + (index < more) for index in range(len(self._makers))]

    def _active(self, batch_size: int) -> list[tuple[StepMaker, int]]:
        shares = zip(self._makers, self._shares(batch_size), strict=True)
        return [(maker, share) for maker, share in shares if share]

    def _together(self, streams: Iterator[Iterator[SchedulerOutput]]) -> Iterator[LockstepOutput]:
        for steps in zip_longest(*streams):
            self._step_id += 1
            idle = [None] * (len(self._makers) - len(steps))
            yield joint_step(self._step_id, [*steps, *idle])
