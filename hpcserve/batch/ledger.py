"""Which rows are finished, and their answers on the way to the output, in the input's order."""

from __future__ import annotations

import asyncio

from hpcserve.batch.files import ByteSink
from hpcserve.errors import IncompleteRunError

_FLUSH_BYTES = 1 << 18


class Ledger:
    """Takes finished rows in any order, writes them in that of their indices.

    `num_finished` rows have an answer; those of them that wait for an earlier row are held, and
    `room` waits while they are too many bytes. A full disk ends the run, not the answers: they
    stay in the partial output.
    """

    def __init__(self, sink: ByteSink, *, max_held_bytes: int) -> None:
        self._sink = sink
        self._max_held_bytes = max_held_bytes
        self._held: dict[int, bytes] = {}
        self._held_bytes = 0
        self._next = 0
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._broken = False
        self._room = asyncio.Event()
        self._room.set()
        self.num_finished = 0
        self.num_written = 0

    @property
    def place(self) -> str:
        """Where the answers are now."""
        return self._sink.place

    def finish(self, index: int, line: bytes) -> None:
        """Row `index` is done; `line` is what the output says of it. Raises IncompleteRunError."""
        self.num_finished += 1
        self._held[index] = line
        self._held_bytes += len(line)
        while self._next in self._held:
            self._queue(self._held.pop(self._next))
            self._next += 1
        if self._held_bytes > self._max_held_bytes:
            self._room.clear()
        else:
            self._room.set()
        if self._pending_bytes >= _FLUSH_BYTES:
            self.flush()

    async def room(self) -> None:
        """Wait until so few answers are held back that more rows may start."""
        await self._room.wait()

    def flush(self) -> None:
        """Hand what is in order to the operating system."""
        if not self._pending or self._broken:
            return
        try:
            self._sink.write(b"".join(self._pending))
        except BrokenPipeError:
            self._broken = True
            raise
        except OSError as error:
            self._broken = True
            raise IncompleteRunError(
                f"cannot write {self.place}: {error.strerror}; {self.num_written:,} rows are in it"
            ) from error
        self.num_written += len(self._pending)
        self._pending.clear()
        self._pending_bytes = 0

    def commit(self) -> None:
        """Every row is finished: the output takes its name."""
        self.flush()
        try:
            self._sink.commit()
        except OSError as error:
            raise IncompleteRunError(f"cannot complete {self.place}: {error.strerror}") from error

    def keep(self) -> None:
        """The run ends early: write also what waited for earlier rows, so that nothing is lost."""
        try:
            if not self._broken:
                for index in sorted(self._held):
                    self._queue(self._held.pop(index))
                self.flush()
        finally:
            self._sink.keep()

    def _queue(self, line: bytes) -> None:
        self._held_bytes -= len(line)
        self._pending.append(line)
        self._pending_bytes += len(line)
