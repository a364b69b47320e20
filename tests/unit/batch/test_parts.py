"""The parts of a run on their own: lines, ids, window, ledger, report."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcserve.batch import journal
from hpcserve.batch.files import lines_of
from hpcserve.batch.journal import RowRecord
from hpcserve.batch.progress import duration, progress_line
from hpcserve.batch.report import BatchReport
from hpcserve.batch.row import row_seed
from hpcserve.batch.tally import Tally
from hpcserve.batch.window import Window


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


def test_row_seeds_differ_and_fit() -> None:
    seeds = {row_seed(seed, index) for seed in range(10) for index in range(100)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_window_bounds_tokens_beyond_the_rows_that_run() -> None:
    window = Window(min_rows=2, max_rows=4, max_tokens=100)

    async def enter(*sizes: int) -> None:
        for size in sizes:
            await asyncio.wait_for(window.enter(size), 60)

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


def test_the_report_tells_the_time_left() -> None:
    report = BatchReport(num_ok=10, num_total=50, num_before=10, started_s=0.0, ended_s=30.0)
    assert report.seconds_left == 90.0
    assert progress_line(report).startswith("20 of 50 rows (40%), ")
    assert progress_line(report).endswith("1m30s left")
    assert BatchReport(num_total=50).seconds_left is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.21, "4.2s"), (59.9, "59.9s"), (185, "3m05s"), (7620, "2h07m")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("num_rows", [10, 64, 65, 1000, 5000])
def test_percentiles_of_many_rows_are_those_of_an_even_sample(num_rows: int) -> None:
    tally = Tally(max_samples=64)
    for number in range(num_rows):
        tally.add(0, RowRecord(number, journal.OK, b"", latency_s=float(number), waited_s=0.0))
    found = tally.percentiles()["seconds per row"]
    assert found["p50"] == pytest.approx((num_rows - 1) / 2, abs=max(1, num_rows / 32))
    assert found["p99"] == pytest.approx(num_rows * 0.99, abs=max(1, num_rows / 16))
    assert found["max"] == num_rows - 1
    assert found["mean"] == pytest.approx((num_rows - 1) / 2)
    counts = tally.histograms()["seconds per row"][0]
    assert sum(counts) == pytest.approx(num_rows, rel=0.07)
