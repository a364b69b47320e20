"""The short way from an event stream to its socket.

uvicorn keeps what it is good at: parsing, the head of a response, its end, keep-alive, pipelined
requests. Only the body of a stream goes past its layers, which cost more than all else per token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

#: Key among a request's ASGI extensions.
WIRE = "hpcserve.wire"
#: Most bytes of a request line with its headers, give or take one read. They are kept until all
#: are there, before anybody asks for a key.
MOST_HEAD_BYTES = 1 << 18
_TOO_LONG = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
    b"connection: close\r\n\r\n"
    b'{"error":{"message":"the request line and its headers are too long",'
    b'"type":"invalid_request_error","param":null,"code":"headers_too_large"}}'
)


class Wire:
    """Writes the body of one response, once its head is out.

    on_resume: called when a reader that was slow has caught up.
    """

    __slots__ = ("_cycle", "on_resume")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self.on_resume: Callable[[], None] | None = None

    @property
    def is_full(self) -> bool:
        """Whether the reader is slow: what is written now would only pile up here."""
        return self._cycle.flow.write_paused

    def write(self, data: bytes) -> None:
        """Send a part of the body; to a client that has left, nothing."""
        cycle = self._cycle
        if cycle.disconnected or cycle.response_complete:
            return
        if not data:
            return  # an empty chunk would end the body
        if cycle.chunked_encoding:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        cycle.transport.write(data)

    @property
    def is_done(self) -> bool:
        return self._cycle.response_complete

    def disconnect(self) -> None:
        """The connection is gone: tell whoever reads or writes this response."""
        if not self._cycle.response_complete:
            self._cycle.disconnected = True
        self._cycle.message_event.set()


class WireProtocol(HttpToolsProtocol):
    """uvicorn's connection, whose requests carry a Wire among their extensions."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: Of requests that are not answered yet: several where the client pipelines them.
        self._wires: list[Wire] = []
        self._in_head = False
        self._head_bytes = 0

    def data_received(self, data: bytes) -> None:
        was_in_head = self._in_head
        super().data_received(data)
        if was_in_head and self._in_head:  # all of it is a part of the head
            self._head_bytes += len(data)
            if self._head_bytes > MOST_HEAD_BYTES:
                if self.cycle is None or self.cycle.response_complete:
                    self.transport.write(_TOO_LONG)
                self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        self._in_head = False
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is before:
            return  # uvicorn handed the request to nobody
        wire = Wire(self.cycle)
        self._wires = [*(one for one in self._wires if not one.is_done), wire]
        self.scope["extensions"] = {WIRE: cast(Any, wire)}  # uvicorn types the usual ones alone

    def resume_writing(self) -> None:
        super().resume_writing()
        for wire in self._wires:
            if wire.on_resume is not None:
                wire.on_resume()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        # uvicorn tells only the request that came last.
        for wire in self._wires:
            wire.disconnect()
        self._wires = []
