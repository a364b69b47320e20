"""Reads server-sent events of a completion as fast as Python can: no JSON on the common path."""

from __future__ import annotations

from array import array

_END = b"\n\n"
_USAGE = b'"usage":'


class SSEReader:
    """Fed with the pieces of one response body.

    times: when each event that carries tokens came.  usage_event, last_event: payloads to be
    parsed when the response has ended.  error: the payload of an error event, if one came.
    """

    __slots__ = ("_payloads", "_rest", "done", "error", "last_event", "times", "usage_event")

    def __init__(self, *, keep: bool = False) -> None:
        self.times: array[float] = array("d")
        self.usage_event = b""
        self.last_event = b""
        self.error = b""
        self.done = False
        self._rest = b""
        self._payloads: list[bytes] | None = [] if keep else None

    @property
    def payloads(self) -> list[bytes]:
        """Every event with tokens, where `keep` asked for them."""
        return [payload.strip() for payload in self._payloads or []]

    def feed(self, body: bytes, now: float) -> None:
        """Take bytes that came at time `now`, cut anywhere."""
        if self._rest:
            body = self._rest + body
            self._rest = b""
        if b"\r" in body:
            body = body.replace(b"\r\n", b"\n")
        if not body.endswith(_END):
            end = body.rfind(_END)
            if end < 0:
                self._rest = body
                return
            body, self._rest = body[: end + 2], body[end + 2 :]
        if body.find(_END) == len(body) - 2:
            self._take(body, now)
            return
        for event in body.split(_END):
            if event:
                self._take(event, now)

    def _take(self, event: bytes, now: float) -> None:
        if not event.startswith(b"data:"):
            return  # a comment that keeps the connection alive, or a field we have no use for
        usage = event.find(_USAGE)
        if usage >= 0 and not event.startswith((b"null", b" null"), usage + len(_USAGE)):
            self.usage_event = event[5:]
        choices = event.find(b'"choices":')
        if choices >= 0:
            if event.startswith((b"[]", b" []"), choices + 10):
                return  # usage alone
            self.times.append(now)
            self.last_event = event
            if self._payloads is not None:
                self._payloads.append(event[5:])
        elif b"[DONE]" in event:
            self.done = True
        elif b'"error"' in event:
            self.error = event[5:].strip()
