"""Requests that wait for a slot and pages."""

from __future__ import annotations

from collections.abc import Callable

from hpcserve.errors import QueueFullError
from hpcserve.scheduler.policy import order_waiting
from hpcserve.scheduler.request import Request


class WaitingQueue:
    """In order of arrival, retracted ones first; who is looked at first is the policy's choice.

    limit: most that may wait, None for any number.
    """

    def __init__(self, policy: str, limit: int | None) -> None:
        self._policy = policy
        self._limit = limit
        self._requests: list[Request] = []

    def __len__(self) -> int:
        return len(self._requests)

    def check_room(self) -> None:
        """Raise QueueFullError where no more may wait."""
        if self._limit is not None and len(self._requests) >= self._limit:
            raise QueueFullError(
                f"{len(self._requests)} requests wait already, the limit is {self._limit}; "
                "try again later"
            )

    def append(self, request: Request) -> None:
        self._requests.append(request)

    def put_back(self, request: Request) -> None:
        """One that was retracted goes to the head."""
        self._requests.insert(0, request)

    def remove(self, request: Request) -> None:
        self._requests.remove(request)

    def best_first(self, num_cached: Callable[[Request], int]) -> list[Request]:
        """All of them as the policy orders them.  num_cached: see `order_waiting`."""
        return order_waiting(self._policy, self._requests, num_cached)

    def leave(self, admitted: set[tuple[bytes, int]]) -> None:
        """Take these out, by their keys; those in front of them were passed over once more."""
        last = max(i for i, r in enumerate(self._requests) if r.key in admitted)
        for request in self._requests[:last]:
            request.num_passed_over += 1
        self._requests = [r for r in self._requests if r.key not in admitted]
