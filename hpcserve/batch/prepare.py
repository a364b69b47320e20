"""Rows on their way to the engine: read, decoded, checked and tokenised ahead of it, in order."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from hpcserve.batch.engine import RowEngine
from hpcserve.batch.formats.base import BatchReader, MalformedRowError, RawRow
from hpcserve.batch.row import BatchRow, Failure, RowDialect
from hpcserve.errors import EngineError, HpcserveError, InputError

_CHUNK_ROWS = 64
_CHUNK_BYTES = 1 << 20

#: What a row can bring about in the code that reads it; anything else is a defect and ends the run.
ROW_ERRORS = (HpcserveError, ValueError, TypeError, LookupError, RecursionError)


class Preparation:
    """Chunks of rows, a few ahead of who asks for them.

    One thread reads, so that the order is the file's; a pool of threads does the rest.
    """

    def __init__(self, reader: BatchReader, dialect: RowDialect, engine: RowEngine) -> None:
        self._rows = iter(reader)
        self._reader = reader
        self._dialect = dialect
        self._engine = engine
        self._num_rows = 0
        # More threads than cores only fight for the interpreter; tokenising lets it go.
        num_threads = max(1, min(4, os.cpu_count() or 1))
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="prepare")
        self._free_slots = threading.Semaphore(num_threads + 2)
        self._closed = False
        # A daemon: it may wait for stdin when the run ends.
        self._reading = threading.Thread(target=self._read_all, name="read", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ahead: asyncio.Queue[Future[list[BatchRow]]] = asyncio.Queue()

    async def chunks(self) -> AsyncIterator[list[BatchRow]]:
        """Every row of the input, in order. Raises InputError."""
        self._loop = asyncio.get_running_loop()
        self._reading.start()
        while rows := await asyncio.wrap_future(await self._ahead.get()):
            self._free_slots.release()
            yield rows

    def close(self) -> None:
        self._closed = True
        self._free_slots.release()
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._reading.is_alive():
            self._reading.join(timeout=1.0)

    def _read_all(self) -> None:
        """Ends with an empty chunk, or with the error that reading met."""
        more = True
        while more:
            self._free_slots.acquire()
            chunk: Future[list[BatchRow]] = Future()
            try:
                raw = list(self._next_chunk())
            except InputError as error:
                chunk.set_exception(error)
                more = False
            else:
                more = bool(raw)
                if self._closed:
                    return
                chunk = self._pool.submit(self._prepare_chunk, raw)
            if self._closed or self._loop is None:
                return
            self._loop.call_soon_threadsafe(self._ahead.put_nowait, chunk)

    def _next_chunk(self) -> Iterator[tuple[int, RawRow]]:
        num_bytes = 0
        for _ in range(_CHUNK_ROWS):
            row = next(self._rows, None)
            if row is None:
                return
            yield self._num_rows, row
            self._num_rows += 1
            num_bytes += row.num_bytes
            if num_bytes >= _CHUNK_BYTES:
                return

    def _prepare_chunk(self, raw: list[tuple[int, RawRow]]) -> list[BatchRow]:
        return [self._prepare(index, row) for index, row in raw]

    def _prepare(self, index: int, raw: RawRow) -> BatchRow:
        row = BatchRow(index, raw.line, raw.num_bytes)
        try:
            self._dialect.fill(row, self._reader.decode(raw))
            if row.failure is None:
                row.request = self._engine.prepare(row.url, row.body)
        except EngineError:
            raise
        except MalformedRowError as error:
            row.failure = Failure(error.code, error.message)
        except ROW_ERRORS as error:
            row.failure = Failure.of(error)
        return row
