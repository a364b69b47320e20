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

    def on_headers_complete(self) -> None:
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
