"""The parts of a run on their own: lines, ids, window, ledger, report."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcserve.batch import seen_ids
from hpcserve.batch.files import lines_of
from hpcserve.batch.ledger import Ledger
from hpcserve.batch.progress import duration, progress_line
from hpcserve.batch.report import BatchReport
from hpcserve.batch.row import row_seed
from hpcserve.batch.seen_ids import SeenIds
from hpcserve.batch.window import Window
from hpcserve.errors import IncompleteRunError


class _Source:
    """Gives its bytes in pieces, as a pipe does."""

    def __init__(self, data: bytes) -> None:
        self._stream = io.BytesIO(data)

    def read(self, size: int) -> bytes:
        return self._stream.read(size)


def _lines(data: bytes, block: int, limit: int) -> Iterator[tuple[bytes, int]]:
    source: Any = _Source(data)
    return lines_of(source, block_bytes=block, max_line_bytes=limit)


@given(
    data=st.lists(st.sampled_from([b"\n", b"a", b"bc", b"\r", "é".encode()])).map(b"".join),
    block=st.integers(1, 9),
    limit=st.integers(1, 12),
)
def test_lines_are_those_of_split_however_they_arrive(data: bytes, block: int, limit: int) -> None:
    wanted = data.split(b"\n")
    if not wanted[-1]:
        wanted.pop()
    found = list(_lines(data, block, limit))
    assert [line for line, _ in found] == [line[:limit] for line in wanted]
    assert sum(length for _, length in found) == len(data)


@given(st.lists(st.lists(st.one_of(st.none(), st.integers(0, 30), st.text(max_size=1)))))
@settings(max_examples=40)
def test_seen_ids_is_a_set(chunks: list[list[Any]]) -> None:
    limit, seen_ids._RECENT_LIMIT = seen_ids._RECENT_LIMIT, 4
    try:
        seen, wanted = SeenIds(), set()
        for chunk in chunks:
            for custom_id, known in zip(chunk, seen.add_all(chunk), strict=True):
                assert known == (repr(custom_id) in wanted)
                if custom_id is not None:
                    wanted.add(repr(custom_id))
    finally:
        seen_ids._RECENT_LIMIT = limit


def test_row_seeds_differ_and_fit() -> None:
    seeds = {row_seed(seed, index) for seed in range(10) for index in range(100)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_window_bounds_tokens_beyond_the_rows_that_run() -> None:
    window = Window(min_rows=2, max_rows=4, max_tokens=100)

    async def enter(*sizes: int) -> None:
        for size in sizes:
            await asyncio.wait_for(window.enter(size), 1)

    async def scenario() -> None:
        await enter(90, 90)  # rows that run side by side always enter
        assert not window.fits(1)
        waiting = asyncio.create_task(window.enter(10))
        await asyncio.sleep(0)
        window.leave(90)
        await waiting
        assert (window.num_rows, window.num_tokens) == (2, 100)
        window.leave(90)
        await enter(5, 5, 5)
        assert not window.fits(0)  # four rows are the most
        drained = asyncio.create_task(window.drained())
        for size in (10, 5, 5, 5):
            await asyncio.sleep(0)
            assert not drained.done()
            window.leave(size)
        await drained

    asyncio.run(scenario())


class _Sink:
    place = "memory"

    def __init__(self, room: int = 1 << 30) -> None:
        self.data = b""
        self.room = room
        self.kept = self.committed = False

    def write(self, data: bytes) -> None:
        if len(self.data) + len(data) > self.room:
            raise OSError(28, "No space left on device")
        self.data += data

    def commit(self) -> None:
        self.committed = True

    def keep(self) -> None:
        self.kept = True


@given(st.permutations(range(12)))
def test_the_ledger_restores_the_order(order: list[int]) -> None:
    async def scenario() -> bytes:
        sink = _Sink()
        ledger = Ledger(sink, max_held_bytes=1000)
        for index in order:
            ledger.finish(index, b"%d\n" % index)
        ledger.commit()
        assert sink.committed
        return sink.data

    assert asyncio.run(scenario()) == b"".join(b"%d\n" % index for index in range(12))


def test_the_ledger_holds_new_rows_back_while_too_much_waits() -> None:
    async def scenario() -> None:
        ledger = Ledger(_Sink(), max_held_bytes=10)
        await asyncio.wait_for(ledger.room(), 1)
        ledger.finish(1, b"x" * 11)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(ledger.room(), 0.01)
        ledger.finish(0, b"y")
        await asyncio.wait_for(ledger.room(), 1)

    asyncio.run(scenario())


def test_an_early_end_writes_what_waited() -> None:
    async def scenario() -> bytes:
        sink = _Sink()
        ledger = Ledger(sink, max_held_bytes=1000)
        for index in (0, 3, 2):
            ledger.finish(index, b"%d" % index)
        ledger.keep()
        assert sink.kept
        return sink.data

    assert asyncio.run(scenario()) == b"023"


def test_a_write_that_fails_is_not_tried_again() -> None:
    async def scenario() -> None:
        sink = _Sink(room=5)
        ledger = Ledger(sink, max_held_bytes=1000)
        ledger.finish(0, b"0123456789")
        with pytest.raises(IncompleteRunError, match="No space left on device; 0 rows"):
            ledger.flush()
        ledger.keep()
        assert sink.kept
        assert sink.data == b""

    asyncio.run(scenario())


def test_the_report_tells_the_time_left() -> None:
    report = BatchReport(num_ok=10, bytes_finished=25, started_s=0.0, ended_s=30.0)
    assert report.seconds_left(100) == 90.0
    assert report.seconds_left(None) is None
    assert progress_line(report, 100).startswith("10 rows (25%), ")
    assert progress_line(report, 100).endswith("1m30s left")
    assert progress_line(report, None).endswith("30.0s so far")


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.21, "4.2s"), (59.9, "59.9s"), (185, "3m05s"), (7620, "2h07m")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
