"""Finished rows to a pipe as they come: in the input's order, or at once."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import BinaryIO

_MAX_BYTES = 64 << 20


class RowStream:
    """One thread writes, so that a reader that is slow or asleep does not stop the engine's client.

    ordered: a row waits for all rows before it.  on_space: called on the event loop when the
    reader has caught up.
    """

    def __init__(self, sink: BinaryIO, *, ordered: bool, max_bytes: int = _MAX_BYTES) -> None:
        self._sink = sink
        self._ordered = ordered
        self._max_bytes = max_bytes
        self._next = 0
        self._held: dict[int, bytes] = {}
        self._held_bytes = 0
        self._unsent_bytes = 0
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._error: OSError | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.on_space: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._write, name="stream", daemon=True)
        self._thread.start()

    def add(self, index: int, payload: bytes) -> None:
        """On the event loop. Raises OSError (a reader that is gone: BrokenPipeError)."""
        self._check()
        self._loop = self._loop or asyncio.get_running_loop()
        if not self._ordered:
            self._send(payload)
            return
        self._held[index] = payload
        self._held_bytes += len(payload)
        while (ready := self._held.pop(self._next, None)) is not None:
            self._held_bytes -= len(ready)
            self._next += 1
            self._send(ready)

    def admits(self, *, is_idle: bool) -> bool:
        """Whether another row may start. is_idle: none is in flight: then the row that the held
        ones wait for has yet to start."""
        if self._error is None and self._unsent_bytes > self._max_bytes:
            return False
        return is_idle or self._held_bytes <= self._max_bytes

    def close(self) -> None:
        """Everything is written when this returns. Raises OSError."""
        self._queue.put(None)
        self._thread.join()
        self._check()

    def _send(self, payload: bytes) -> None:
        with self._lock:
            self._unsent_bytes += len(payload)
        self._queue.put(payload)

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _write(self) -> None:
        try:
            while (payload := self._queue.get()) is not None:
                self._sink.write(payload + b"\n")
                if self._queue.empty():
                    self._sink.flush()
                with self._lock:
                    was_full = self._unsent_bytes > self._max_bytes
                    self._unsent_bytes -= len(payload)
                    has_space = was_full and self._unsent_bytes <= self._max_bytes
                if has_space and self._loop is not None and not self._loop.is_closed():
                    self._loop.call_soon_threadsafe(self.on_space)
            self._sink.flush()
        except OSError as error:
            self._error = error
            if self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self.on_space)
