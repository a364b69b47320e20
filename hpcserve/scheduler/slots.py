"""Which of the worker's slots are taken."""

from __future__ import annotations


class SlotPool:
    """Slots 0 .. count - 1.

    One that is given back while a step is being made may be taken again in that step: workers
    apply its releases before its new requests, and a request that gives way has neither a row nor
    new pages in the step.
    """

    def __init__(self, count: int) -> None:
        self._free = list(range(count - 1, -1, -1))
        # What the workers have not been told yet.
        self._released: list[int] = []

    def __bool__(self) -> bool:
        return bool(self._free)

    def take(self) -> int:
        return self._free.pop()

    def give_back(self, slot: int) -> None:
        self._free.append(slot)
        self._released.append(slot)

    def released(self) -> list[int]:
        """Slots given back since the last call, for the next message to the workers."""
        released, self._released = self._released, []
        return released

    @property
    def num_free(self) -> int:
        return len(self._free)
