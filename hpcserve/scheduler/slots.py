"""Which of the worker's slots are taken."""

from __future__ import annotations


class SlotPool:
    """Slots 0 .. count - 1. One that is given back while a step is being made is not given out in
    the same step, since page-table changes of its last owner may be part of that step already."""

    def __init__(self, count: int) -> None:
        self._free = list(range(count - 1, -1, -1))
        self._given_back: list[int] = []
        # What the workers have not been told yet.
        self._released: list[int] = []

    def __bool__(self) -> bool:
        return bool(self._free)

    def begin_step(self) -> None:
        """From here on, slots given back before may be taken."""
        self._free += self._given_back
        self._given_back = []

    def take(self) -> int:
        return self._free.pop()

    def give_back(self, slot: int) -> None:
        self._given_back.append(slot)
        self._released.append(slot)

    def released(self) -> list[int]:
        """Slots given back since the last call, for the next message to the workers."""
        released, self._released = self._released, []
        return released

    @property
    def num_free(self) -> int:
        return len(self._free) + len(self._given_back)
