"""Server-sent events: bytes out as they come, an end when the client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from hpcserve.errors import HpcserveError, RequestAbortedError
from hpcserve.outputs import RequestOutput
from hpcserve.protocol.chunks import DONE, error_event
from hpcserve.server.disconnect import until_disconnect


class EventStream(Response):
    """Sends what `events` yields. It is closed in every case, so it can free what it holds.

    Less general than Starlette's StreamingResponse, and cheaper per event.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        self.status_code = 200
        self.background = None
        self._events = events
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        try:
            await until_disconnect(receive, self._send_all(send))
        except RequestAbortedError:
            return

    async def _send_all(self, send: Send) -> None:
        try:
            async for data in self._events:
                await send({"type": "http.response.body", "body": data, "more_body": True})
        except HpcserveError as error:
            # The status is out already: the error can only follow as an event.
            last = error_event(error) + DONE
            await send({"type": "http.response.body", "body": last, "more_body": True})
        finally:
            await self._events.aclose()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def with_first(
    first: RequestOutput, rest: AsyncIterator[RequestOutput]
) -> AsyncIterator[RequestOutput]:
    """`rest`, after a news that was taken from it already."""
    yield first
    async for output in rest:
        yield output


async def merged(
    streams: Sequence[AsyncIterator[RequestOutput]],
) -> AsyncGenerator[tuple[int, RequestOutput], None]:
    """(number of the stream, news) of all of them, as they come."""
    waiting = {asyncio.ensure_future(anext(s)): number for number, s in enumerate(streams)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                number = waiting.pop(task)
                try:
                    output = task.result()
                except StopAsyncIteration:
                    continue
                waiting[asyncio.ensure_future(anext(streams[number]))] = number
                yield number, output
    finally:
        for task in waiting:
            task.cancel()
        if waiting:
            await asyncio.wait(waiting)
