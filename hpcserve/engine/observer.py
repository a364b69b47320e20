"""Who is told how requests fare, for metrics; and how long tokens take, looked up once a step."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from hpcserve.engine.open_request import OpenRequest
from hpcserve.ipc.messages import EngineCoreOutputs

#: A row comes again a few messages later where micro-batches take turns; a retracted one much later.
_STEPS_KEPT = 16


class EngineObserver(Protocol):
    """Called on the event loop of the client, so it must be quick and not raise."""

    def on_first_token(self, request: OpenRequest, queued_s: float) -> None:
        """Once per request that gets one.  queued_s: what it waited in the core."""

    def on_tokens(self, replica: int, gap_s: float, count: int) -> None:
        """`count` requests got their next token, `gap_s` after the one before it."""

    def on_end(self, request: OpenRequest) -> None:
        """Once per request: it has a finish reason, or an error."""


class TokenGaps:
    """The time between one token of a request and its next, of one replica's messages.

    The rows of a step that go on were together in an earlier one, nearly always: so one of them is
    looked up, and speaks for all. That costs the same however many there are.
    """

    def __init__(self) -> None:
        self._steps: deque[tuple[float, list[int]]] = deque(maxlen=_STEPS_KEPT)

    def add(self, now_s: float, message: EngineCoreOutputs) -> tuple[float, int] | None:
        """(seconds since the token before, number of requests that go on); None where none does."""
        new = {request_id for request_id, _ in message.num_cached_tokens or ()}
        count = len(message.request_ids) - len(new)
        found = None
        if count > 0:
            one = next(number for number in message.request_ids if number not in new)
            for then_s, request_ids in self._steps:
                if one in request_ids:
                    found = (now_s - then_s, count)
                    break
        self._steps.appendleft((now_s, message.request_ids))
        return found
