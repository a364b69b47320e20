"""Which rows are finished: takes them in any order, and keeps them for good."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import msgspec

from hpcserve.batch import journal
from hpcserve.batch.durable import (
    fsync_folder,
    publish,
    storage,
    sweep,
    temporary_name,
    write_file,
    write_whole,
)
from hpcserve.batch.journal import RowRecord
from hpcserve.batch.lease import Claim
from hpcserve.batch.manifest import Manifest
from hpcserve.batch.run_dir import RunDir

_FLUSH_BYTES = 1 << 20
_IN_MEMORY_BYTES = 32 << 20


class OpenShard:
    """A shard in work, and where in its journal each finished row lies."""

    def __init__(self, claim: Claim, path: Any, descriptor: int) -> None:
        self.number = claim.number
        self.first = claim.shard.first
        self.file = claim.shard.file
        self.span = claim.shard.span
        self.path = path
        self.descriptor = descriptor
        self.places: list[tuple[int, int] | None] = [None] * self.span.num_rows
        self.num_left = self.span.num_rows
        #: Rows that the end of an earlier run's time cut short -> how often, and their longest.
        self.cut_short: dict[int, tuple[int, float]] = {}
        #: Filled by one thread and emptied by another.
        self.pending: deque[bytes] = deque()
        self.size = 0
        self.is_dirty = False
        #: Another worker has committed it: nobody needs its rows.
        self.is_lost = False
        #: What a write did not get to its end with: nothing may come behind half a record.
        self._broken: OSError | None = None

    def is_done(self, row: int) -> bool:
        return self.places[row] is not None

    def append(self, data: bytes) -> None:
        self.pending.append(data)
        self.size += len(data)
        self.is_dirty = True

    def add(self, record: RowRecord, packed: bytes) -> None:
        """Take a record in; of two for one row the first counts."""
        if record.status == journal.CUT_SHORT:
            count, longest = self.cut_short.get(record.row, (0, 0.0))
            self.cut_short[record.row] = (count + 1, max(longest, record.latency_s))
        elif record.row < self.span.num_rows and self.places[record.row] is None:
            self.places[record.row] = (self.size, len(packed))
            self.num_left -= 1
        else:
            return
        self.append(packed)

    def write_pending(self) -> None:
        """Hand it to the operating system. Raises OSError."""
        if self._broken is not None:
            raise OSError(self._broken.errno, self._broken.strerror, str(self.path))
        data = [self.pending.popleft() for _ in range(len(self.pending))]
        try:
            write_whole(self.descriptor, b"".join(data))
        except OSError as error:
            self._broken = error
            raise


class Ledger:
    """The journals of the shards in work, and their commit.

    `finish` costs no I/O: one thread writes, syncs and commits in the background. What that thread
    meets (a full disk) comes out of `finish` and `sync` as IncompleteRunError.
    on_commit: called on the event loop with a shard's number.
    """

    def __init__(
        self,
        run_dir: RunDir,
        manifest: Manifest,
        owner: str,
        on_commit: Callable[[int], None] = lambda number: None,
    ) -> None:
        self._dir = run_dir
        self._run_id = manifest.run_id_bytes
        self._owner = owner
        self._on_commit = on_commit
        self._open: dict[int, OpenShard] = {}
        #: Shards that were committed at the last look.
        self._elsewhere: set[int] = set()
        self._buffered = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._commits: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self.num_committed = 0

    def open(self, claim: Claim) -> OpenShard:
        """Start work on a shard with what earlier owners finished of it; from any thread.

        Their journals are read up to where they are torn, copied into one of our own, and removed.
        Raises IncompleteRunError.
        """
        path = self._dir.journal(claim.number, self._owner)
        with storage(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
            shard = OpenShard(claim, path, descriptor)
            shard.append(journal.header(self._run_id, claim.number))
            older = [one for one in self._dir.journals_of(claim.number) if one != path]
            for one in older:
                for packed in journal.packed_records(one, self._run_id, claim.number):
                    shard.add(journal.unpack(packed), packed)
            shard.write_pending()
            if older:
                os.fsync(descriptor)
                fsync_folder(path.parent)
                if not claim.shared:
                    for one in older:
                        one.unlink(missing_ok=True)
        return shard

    def started(self, shard: OpenShard) -> None:
        """On the event loop: rows of this shard may finish now. One that is whole is committed."""
        self._open[shard.number] = shard
        if shard.number in self._elsewhere:
            self._give_up(shard.number)
        elif shard.num_left == 0:
            self._begin_commit(shard)

    def finish(self, shard: OpenShard, record: RowRecord) -> None:
        """A row has its answer, or its error. Raises IncompleteRunError."""
        self._check()
        if shard.is_lost:
            return
        packed = record.pack()
        shard.add(record, packed)
        self._buffered += len(packed)
        if shard.num_left == 0 and record.status != journal.CUT_SHORT:
            self._begin_commit(shard)
        elif self._buffered >= _FLUSH_BYTES:
            self._buffered = 0
            self._in_background(self._write_all)

    def lose(self, committed: set[int]) -> None:
        """Give up shards that others have committed meanwhile, and those of them that wait to be
        started when they are."""
        self._elsewhere = committed
        for number in committed & self._open.keys():
            self._give_up(number)

    def _give_up(self, number: int) -> None:
        shard = self._open.pop(number)
        shard.is_lost = True
        self._in_background(partial(self._let_go, shard))
        self._on_commit(number)

    async def sync(self) -> None:
        """All rows finished so far are on the disk when this returns. Raises IncompleteRunError."""
        self._check()
        dirty = [shard for shard in self._open.values() if shard.is_dirty]
        for shard in dirty:
            shard.is_dirty = False
        if dirty:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._sync_all, dirty)

    async def settle(self) -> None:
        """Wait for commits that are under way. Raises IncompleteRunError."""
        while self._commits:
            await asyncio.wait(set(self._commits))
        self._check()

    def close(self) -> None:
        """Let go of the journals; what was not synced is still written, where the disk takes it."""
        self._thread.shutdown(wait=True)
        for shard in self._open.values():
            os.close(shard.descriptor)
        self._open.clear()

    # ------------------------------------------------------------ in the background

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _in_background(self, work: Callable[[], None]) -> None:
        task = asyncio.get_running_loop().create_task(self._run_in_thread(work))
        self._commits.add(task)
        task.add_done_callback(self._commits.discard)

    async def _run_in_thread(self, work: Callable[[], None]) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except Exception as error:  # noqa: BLE001 - kept, and raised where the run waits
            self._failure = self._failure or error

    def _begin_commit(self, shard: OpenShard) -> None:
        del self._open[shard.number]

        async def commit() -> None:
            await self._run_in_thread(lambda: self._commit(shard))
            if self._failure is None:
                self.num_committed += 1
                self._on_commit(shard.number)

        task = asyncio.get_running_loop().create_task(commit())
        self._commits.add(task)
        task.add_done_callback(self._commits.discard)

    def _write_all(self) -> None:
        for shard in list(self._open.values()):
            with storage(shard.path):
                shard.write_pending()

    def _sync_all(self, dirty: list[OpenShard]) -> None:
        for shard in dirty:
            if shard.number in self._open:
                with storage(shard.path):
                    shard.write_pending()
                    os.fsync(shard.descriptor)
        with storage(self._dir.journals):
            fsync_folder(self._dir.journals)

    def _commit(self, shard: OpenShard) -> None:
        """Every row once, in order, under the shard's name, from one moment to the next."""
        final = self._dir.shard(shard.number)
        temporary = temporary_name(final)
        with storage(final):
            shard.write_pending()
            try:
                write_file(temporary, self._pieces(shard))
                publish(temporary, final)
            except OSError:
                sweep(temporary)
                raise
            self._let_go(shard)

    def _let_go(self, shard: OpenShard) -> None:
        os.close(shard.descriptor)
        sweep(shard.path)

    def _pieces(self, shard: OpenShard) -> Iterator[bytes]:
        def read() -> Iterator[bytes]:
            for place in shard.places:
                if place is not None:
                    yield os.pread(shard.descriptor, place[1], place[0])

        # Read twice where it is big, so that memory does not depend on the length of answers.
        kept = list(read()) if shard.size < _IN_MEMORY_BYTES else None
        summary = summarize(map(journal.unpack, kept or read()))
        yield journal.header(self._run_id, shard.number)
        yield RowRecord(journal.SUMMARY_ROW, journal.SUMMARY, msgspec.json.encode(summary)).pack()
        packed = iter(kept or read())
        while block := list(itertools.islice(packed, 64)):
            yield b"".join(block)


def summarize(records: Iterator[RowRecord]) -> dict[str, Any]:
    """Counts of a shard, as `batch status` adds them up."""
    statuses: Counter[int] = Counter()
    errors: Counter[str] = Counter()
    prompt = output = cached = num_rows = 0
    for record in records:
        num_rows += 1
        statuses[record.status] += 1
        prompt += record.num_prompt_tokens
        output += record.num_output_tokens
        cached += record.num_cached_tokens
        if record.status != journal.OK:
            errors[error_code(record)] += 1
    return {
        "num_rows": num_rows,
        "num_ok": statuses[journal.OK],
        "num_failed": num_rows - statuses[journal.OK],
        "num_quarantined": statuses[journal.QUARANTINED],
        "num_prompt_tokens": prompt,
        "num_output_tokens": output,
        "num_cached_tokens": cached,
        "errors": errors,
        "committed_s": time.time(),
    }


def error_code(record: RowRecord) -> str:
    """Why a failed row failed, in one word."""
    return str(msgspec.json.decode(record.payload)["error"]["code"])
