"""Rows on their way to the engine: read, decoded and tokenised ahead of it, shard by shard."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from hpcserve.batch.formats.base import BatchReader, RawRow
from hpcserve.batch.ledger import OpenShard
from hpcserve.batch.prepare_pool import PreparePool
from hpcserve.batch.row import BatchRow
from hpcserve.batch.row_maker import MakerRecipe, RawChunk, RowMaker

_CHUNK_ROWS = 128
_CHUNK_BYTES = 1 << 20


#: Fewer rows than this, and less text, are prepared before a process for it is up (a second).
_MANY_ROWS = 10_000
_MUCH_TEXT = 16 << 20
_MAX_PROCESSES = 4


def usable_cores() -> int:
    """Cores that this process may use: of a job, not of the whole node."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def usual_processes(num_rows: int, num_bytes: int, num_cores: int) -> int:
    """How many processes prepare a run's rows, where nobody says it."""
    if num_rows < _MANY_ROWS and num_bytes < _MUCH_TEXT:
        return 0
    # Engine, its client and the kernel have work as well.
    return min(_MAX_PROCESSES, num_cores // 4)


@dataclass
class Chunk:
    """rows: ready for the engine.  opened: shards whose first rows these are; they are the
    ledger's from now on.  pause: there is nothing to do just now, but there may be later."""

    rows: list[BatchRow] = field(default_factory=list)
    opened: list[OpenShard] = field(default_factory=list)
    pause: bool = False


#: The next shard to work on, opened; None where there is none just now; raises StopIteration at
#: the end.
NextShard = Callable[[], OpenShard | None]


class Preparation:
    """Chunks of rows, a few ahead of who asks for them.

    One thread reads. The rest is done by processes where `recipe` is given, and by threads until
    those are up: the first rows do not wait for them.
    readers: by number of file.
    """

    def __init__(
        self,
        next_shard: NextShard,
        readers: list[BatchReader],
        maker: RowMaker,
        *,
        poll_s: float,
        recipe: MakerRecipe | None = None,
        num_processes: int = 0,
    ) -> None:
        self._next_shard = next_shard
        self._readers = readers
        self._maker = maker
        self._poll_s = poll_s
        # More threads than cores only fight for the interpreter.
        num_threads = max(1, min(4, usable_cores()))
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="prepare")
        self._free_slots = threading.Semaphore(max(num_threads, 2 * num_processes) + 4)
        self._processes: PreparePool | None = None
        if recipe is not None and num_processes:
            self._processes = PreparePool(num_processes, recipe, maker)
        self._closing = threading.Event()
        self._reading = threading.Thread(target=self._read_all, name="read", daemon=True)
        self._loop = asyncio.get_running_loop()
        self._ahead: asyncio.Queue[Future[Chunk | None]] = asyncio.Queue()
        self._current: asyncio.Future[Chunk | None] | None = None
        self._reading.start()

    async def next(self) -> Chunk | None:
        """The next chunk; None at the end. Raises what reading met: InputError, for one.

        Whoever waits may be cancelled at any point: the chunk is then what the next call gives.
        """
        if self._current is None:
            self._current = asyncio.wrap_future(await self._ahead.get())
        await asyncio.wait({self._current})
        chunk = self._current.result()
        self._current = None
        self._free_slots.release()
        return chunk

    @property
    def has_ready(self) -> bool:
        """Whether `next` returns at once, or nearly so."""
        return not self._ahead.empty()

    def close(self) -> None:
        self._closing.set()
        self._free_slots.release()
        self._reading.join()
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._processes is not None:
            self._processes.close()
        if self._current is not None and self._current.done() and not self._current.cancelled():
            self._current.exception()  # the run has ended by something else

    # ------------------------------------------------------------ in the reading thread

    def _read_all(self) -> None:
        """Ends with None, or with the error that reading met."""
        try:
            for chunk in self._chunks():
                if not self._offer(chunk):
                    return
        except Exception as error:  # noqa: BLE001 - raised where the chunks are taken
            failed: Future[Chunk | None] = Future()
            failed.set_exception(error)
            self._offer(failed)

    def _chunks(self) -> Iterator[Future[Chunk | None]]:
        paused = False
        while True:
            try:
                shard = self._next_shard()
            except StopIteration:
                yield _done(None)
                return
            if shard is not None:
                paused = False
                yield from self._chunks_of(shard)
                continue
            if not paused:
                yield _done(Chunk(pause=True))
            paused = True
            if self._closing.wait(self._poll_s):
                return

    def _chunks_of(self, shard: OpenShard) -> Iterator[Future[Chunk | None]]:
        yield _done(Chunk(opened=[shard]))
        raw: list[tuple[int, RawRow]] = []
        num_bytes = 0
        for number, row in enumerate(self._readers[shard.file].rows(shard.span)):
            if shard.is_done(number):
                continue
            raw.append((number, row))
            num_bytes += row.num_bytes
            if len(raw) == _CHUNK_ROWS or num_bytes >= _CHUNK_BYTES:
                yield self._made(shard, raw)
                raw, num_bytes = [], 0
        if raw:
            yield self._made(shard, raw)

    def _offer(self, chunk: Future[Chunk | None]) -> bool:
        """Wait for a slot and hand over; False where nobody wants more."""
        self._free_slots.acquire()
        if self._closing.is_set():
            return False
        self._loop.call_soon_threadsafe(self._ahead.put_nowait, chunk)
        return True

    # ------------------------------------------------------------ elsewhere

    def _made(self, shard: OpenShard, raw: list[tuple[int, RawRow]]) -> Future[Chunk | None]:
        work = RawChunk(shard.file, shard.first, raw)
        if self._processes is not None and self._processes.is_ready:
            rows = self._processes.submit(work)
        else:
            rows = self._pool.submit(self._maker.rows, work)
        chunk: Future[Chunk | None] = Future()
        rows.add_done_callback(lambda done: _as_chunk(done, shard, chunk))
        return chunk


def _as_chunk(rows: Future[list[BatchRow]], shard: OpenShard, chunk: Future[Chunk | None]) -> None:
    if rows.cancelled():
        chunk.cancel()
    elif (error := rows.exception()) is not None:
        chunk.set_exception(error)
    else:
        for row in rows.result():
            row.shard = shard
        chunk.set_result(Chunk(rows.result()))


def _done(chunk: Chunk | None) -> Future[Chunk | None]:
    found: Future[Chunk | None] = Future()
    found.set_result(chunk)
    return found
