"""Server-sent events: bytes out as they come, an end when the client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeAlias

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from hpcserve.engine.client import RequestStream
from hpcserve.errors import HpcserveError, RequestAbortedError
from hpcserve.outputs import RequestOutput
from hpcserve.protocol.chunks import DONE, error_event
from hpcserve.server.disconnect import until_disconnect
from hpcserve.server.flusher import Flusher
from hpcserve.server.wire import WIRE, Wire

#: (new text, number of its tokens) -> its event.
PlainText: TypeAlias = Callable[[str, int], bytes]


class Events(Protocol):
    """The wire format of one streamed response.

    plain_text: for a response of one answer whose events are text as it comes, but the first and
    the last; None for all others.
    """

    plain_text: PlainText | None

    def start(self) -> bytes:
        """What comes before any news, or b""."""

    def write(self, number: int, output: RequestOutput) -> bytes:
        """The events of one bit of news of prompt `number`, or b""."""

    def end(self) -> bytes:
        """What comes after all news."""


class OpenStreams:
    """Running requests of one response, the first of which has news already.

    first: the news of streams[0].
    """

    def __init__(
        self, streams: Sequence[RequestStream], first: RequestOutput, flusher: Flusher
    ) -> None:
        self.streams = streams
        self.first = first
        self.flusher = flusher

    def abort(self) -> None:
        """Nobody wants them any more; those that have ended ignore it."""
        for stream in self.streams:
            stream.abort()


class EventStream(Response):
    """Sends what `events` makes of the streams' news. They are aborted in every case.

    On this project's server the bytes go straight to the connection (see wire.py), on any other
    ASGI server through its `send`.
    """

    media_type = "text/event-stream"

    def __init__(self, open_streams: OpenStreams, events: Events) -> None:
        self.status_code = 200
        self.background = None
        self._open_streams = open_streams
        self._events = events
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            wire = (scope.get("extensions") or {}).get(WIRE)
            out = _AsgiOut(send) if wire is None else wire
            pump = _Pump(self._open_streams, self._events, out)
            await until_disconnect(receive, pump.run())
        except RequestAbortedError:
            return
        finally:
            self._open_streams.abort()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Pump:
    """Moves news to the connection, in callbacks: no task wakes up for a token.

    While the reader is slow nothing is taken, so what waits are token ids and text, joined to one
    event when it reads again.
    """

    def __init__(self, opened: OpenStreams, events: Events, out: Wire | _AsgiOut) -> None:
        self._events = events
        self._out = out
        self._flusher = opened.flusher
        self._first = opened.first
        self._running = dict(enumerate(opened.streams))
        # Of a response with one stream: nearly every turn brings it a bit of text and no more.
        is_one = len(opened.streams) == 1
        self._take_text = None
        if is_one and events.plain_text is not None:
            self._take_text, self._plain_text = opened.streams[0].take_text, events.plain_text
        # The stream itself speaks up once only until its news are taken; several may in one turn.
        self._on_news = partial(self._flusher.add, self._flush) if is_one else self._on_any_news
        self._due = False
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Until the last event is written."""
        self._out.on_resume = self._on_news
        try:
            for stream in self._running.values():
                stream.listen(self._on_news)
            self._out.write(self._events.start() + self._write(0, self._first))
            self._flush()
            await self._done
            if isinstance(self._out, _AsgiOut):
                await self._out.sent()
        finally:
            self._out.on_resume = None
            self._done.cancel()
            if isinstance(self._out, _AsgiOut):
                await self._out.close()

    def _on_any_news(self) -> None:
        if not self._due:
            self._due = True
            self._flusher.add(self._flush)

    def _flush(self) -> None:
        self._due = False
        if self._done.done() or self._out.is_full:
            return
        try:
            if self._take_text is not None and (found := self._take_text()) is not None:
                if found[0]:
                    self._out.write(self._plain_text(*found))
                return
            if data := self._take():
                self._out.write(data)
        except Exception as error:  # noqa: BLE001 (nobody is above a callback: the task raises it)
            self._done.set_exception(error)

    def _take(self) -> bytes:
        """All that is new: one write for each connection, however many answers it carries."""
        parts: list[bytes] = []
        try:
            for number, stream in list(self._running.items()):
                output = stream.take()
                while output is not None:
                    parts.append(self._write(number, output))
                    # What was told once may be news and an error behind them.
                    output = stream.take() if stream.failed else None
            if not self._running:
                parts.append(self._events.end())
                self._done.set_result(None)
        except HpcserveError as error:
            # The status is out already: the error can only follow as an event.
            parts.append(error_event(error) + DONE)
            self._done.set_result(None)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _write(self, number: int, output: RequestOutput) -> bytes:
        if output.finished:
            del self._running[number]
        return self._events.write(number, output)


class _AsgiOut:
    """The same through an ASGI server's `send`: bytes are queued, a task sends them."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._waiting: list[bytes] = []
        self._task: asyncio.Task[Any] | None = None
        self.on_resume: Any = None

    @property
    def is_full(self) -> bool:
        return self._task is not None and not self._task.done()

    def write(self, data: bytes) -> None:
        if data:
            self._waiting.append(data)
            if not self.is_full:
                self._task = asyncio.ensure_future(self._send_all())

    async def sent(self) -> None:
        """Until all that was written is sent. Raises what `send` raised."""
        while self._task is not None:
            task, self._task = self._task, None
            await task

    async def close(self) -> None:
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _send_all(self) -> None:
        while self._waiting:
            data = b"".join(self._waiting)
            self._waiting.clear()
            await self._send({"type": "http.response.body", "body": data, "more_body": True})
        asyncio.get_running_loop().call_soon(self._resume)

    def _resume(self) -> None:
        if self.on_resume is not None:
            self.on_resume()
