"""How many rows the engine holds at a time: enough never to starve, few enough to stay flat."""

from __future__ import annotations

import asyncio

from hpcserve.batch.row_stream import RowStream


class Window:
    """A bound on rows and tokens in flight.

    Rows up to `min_rows` (what the engine runs side by side) always enter, however long; beyond
    them rows enter while their tokens fit into `max_tokens`, which bounds what waits in the
    engine's queue. One task enters rows, any may leave.
    stream: takes finished rows away, and may be behind with it: then none enters.
    """

    def __init__(
        self, *, min_rows: int, max_rows: int, max_tokens: int, stream: RowStream | None = None
    ) -> None:
        self._stream = stream
        if stream is not None:
            stream.on_space = self._wake
        self.max_rows = max_rows
        self.max_tokens = max_tokens
        self._min_rows = min(min_rows, max_rows)
        self.num_rows = 0
        self.num_tokens = 0
        self._waiter: asyncio.Future[None] | None = None

    def fits(self, num_tokens: int) -> bool:
        if self._stream is not None and not self._stream.admits(is_idle=not self.num_rows):
            return False
        if self.num_rows < self._min_rows:
            return True
        return self.num_rows < self.max_rows and self.num_tokens + num_tokens <= self.max_tokens

    async def enter(self, num_tokens: int) -> None:
        """Wait for room for a row of so many tokens, and take it."""
        while not self.fits(num_tokens):
            await self._changed()
        self.take(num_tokens)

    def take(self, num_tokens: int) -> None:
        """Take room that is there."""
        self.num_rows += 1
        self.num_tokens += num_tokens

    def leave(self, num_tokens: int) -> None:
        self.num_rows -= 1
        self.num_tokens -= num_tokens
        self._wake()

    async def drained(self) -> None:
        """Wait until no row is in flight."""
        while self.num_rows:
            await self._changed()

    async def _changed(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
