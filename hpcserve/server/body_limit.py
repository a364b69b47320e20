"""Bodies that are too large are refused before they are in memory."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hpcserve.errors import HpcserveError
from hpcserve.server.refusal import refuse


class BodyTooLargeError(HpcserveError):
    """size: bytes, as far as they are known; None where the body goes on."""

    http_status = 413
    error_type = "invalid_request_error"
    code = "body_too_large"

    def __init__(self, size: int | None, limit: int) -> None:
        said = f"has more than {limit:,} bytes, which"
        if size is not None:
            said = f"has {size:,} bytes; {limit:,}"
        super().__init__(
            f"the request's body {said} is the most that this server takes (--max-body-bytes)"
        )
        self.size = size
        self.limit = limit

    def __reduce__(self) -> tuple[type, tuple[int | None, int]]:
        return (type(self), (self.size, self.limit))


class BodyLimit:
    """Answers 413 to a body of more than `max_bytes`.

    One that says its length is refused at once, any other when it has come that far. What still
    comes of it the HTTP server reads and drops, so that the answer reaches the client.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = dict(scope["headers"])
            declared = headers.get(b"content-length", b"")
            if declared.isdigit():
                if int(declared) > self._max_bytes:
                    error = BodyTooLargeError(int(declared), self._max_bytes)
                    await refuse(scope, receive, send, error)
                    return
            elif b"transfer-encoding" in headers:
                receive = _counted(receive, self._max_bytes)
        await self._app(scope, receive, send)


def _counted(receive: Receive, max_bytes: int) -> Receive:
    """`receive` that raises BodyTooLargeError once more than `max_bytes` have come."""
    size = 0

    async def counted() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > max_bytes:
            raise BodyTooLargeError(None, max_bytes)
        return message

    return counted
