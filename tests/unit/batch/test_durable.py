"""Files of a run that were left, lost, torn or damaged, and those that are none of its business."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from hpcserve.batch import journal, ledger, verbs
from hpcserve.batch.journal import RowRecord
from hpcserve.batch.lease import Claim
from hpcserve.batch.ledger import Ledger
from hpcserve.batch.run_dir import RunDir
from hpcserve.batch.verify import verify_run
from hpcserve.errors import IncompleteRunError, OutputError

Run = Callable[..., Any]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rows = [{"custom_id": f"id-{n}", "prompt": f"a {n} b"} for n in range(100)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "in.jsonl"


# ---------------------------------------------------------------- what others have there


def test_files_of_another_run_beside_this_one_are_left_alone(
    tmp_path: Path, run: Run, source: Path
) -> None:
    """The run for out.jsonl.gz writes its output in this moment."""
    others = [
        *(".out.jsonl.gz.0123456789ab.tmp", ".out.jsonl.hpcserve.0123456789ab.tmp"),
        *(".out.jsonl.tmp", ".out.errors.jsonl.0123456789ab.tmp"),
    ]
    for name in others:
        (tmp_path / name).touch()
    left = tmp_path / ".out.jsonl.0123456789ab.tmp"  # of a worker of this run that was killed
    left.touch()
    run(source, tmp_path / "out.jsonl")
    assert all((tmp_path / name).exists() for name in others)
    assert not left.exists()


def test_what_was_half_written_of_both_outputs_goes(tmp_path: Path, run: Run, source: Path) -> None:
    left = [tmp_path / f".out{one}.jsonl.0123456789ab.tmp" for one in ("", ".errors")]
    for path in left:
        path.touch()
    run(source, tmp_path / "out.jsonl", errors="file")
    assert not any(path.exists() for path in left)


def test_starting_over_takes_away_what_an_earlier_start_was_killed_at(
    tmp_path: Path, run: Run, source: Path
) -> None:
    run(source, tmp_path / "out.jsonl")
    half = tmp_path / ".out.jsonl.hpcserve.0123456789ab.tmp"
    half.mkdir()
    (half / "manifest.json").touch()
    run(source, tmp_path / "out.jsonl", fresh=True)
    names = sorted(one.name for one in tmp_path.iterdir())
    assert names == ["in.jsonl", "out.jsonl", "out.jsonl.hpcserve"]


def test_a_pipe_that_does_not_fit_on_the_disk_leaves_nothing_there(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Endless(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def isatty(self) -> bool:
            return False

    monkeypatch.setattr("hpcserve.batch.inputs._stdin", Endless)
    with pytest.raises(IncompleteRunError, match="No space"):
        run("-", tmp_path / "out.jsonl")
    assert not list(tmp_path.rglob("*.tmp"))


# ---------------------------------------------------------------- journals


@pytest.fixture
def begun(tmp_path: Path, run: Run, source: Path) -> tuple[RunDir, Any]:
    """A run of one shard that is not finished."""
    run(source, tmp_path / "out.jsonl")
    run_dir = RunDir.of_output(tmp_path / "out.jsonl")
    run_dir.shard(0).unlink()
    return run_dir, verbs.manifest_of(run_dir)


def _record(number: int) -> RowRecord:
    return RowRecord(number, journal.OK, b'{"text": "%d"}' % number)


def test_nothing_is_written_behind_half_a_record(
    begun: tuple[RunDir, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full for a moment only: what comes later must not be taken for rows."""
    run_dir, manifest = begun
    full: list[int] = []

    def once(descriptor: int, data: bytes) -> None:
        if full:
            full.pop()
            os.write(descriptor, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.write(descriptor, data)

    monkeypatch.setattr(ledger, "write_whole", once)

    async def scenario() -> None:
        one = Ledger(run_dir, manifest, "one")
        shard = one.open(Claim(manifest.shards[0], 0))
        one.started(shard)
        one.finish(shard, _record(0))
        await one.sync()
        one.finish(shard, _record(1))
        full.append(1)
        with pytest.raises(IncompleteRunError, match="No space left"):
            await one.sync()
        for number in range(2, 100):
            one.finish(shard, _record(number))
        with pytest.raises(IncompleteRunError, match="No space left"):
            await one.settle()
        one.close()

    asyncio.run(scenario())
    assert not run_dir.shard(0).exists()
    (path,) = run_dir.journals_of(0)
    found = [record.row for record in journal.records(path, manifest.run_id_bytes, 0)]
    assert found == [0]  # and the rest is answered again


@pytest.fixture
def written(begun: tuple[RunDir, Any]) -> tuple[Path, bytes]:
    run_dir, manifest = begun
    path = run_dir.journal(0, "one")
    packed = [_record(number).pack() for number in range(5)]
    path.write_bytes(journal.header(manifest.run_id_bytes, 0) + b"".join(packed))
    return path, manifest.run_id_bytes


def test_a_journal_that_its_owner_removes_while_it_is_read_is_read_all_the_same(
    written: tuple[Path, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has just committed the shard."""
    path, run_id = written
    read = journal.header

    def then_gone(*args: Any) -> bytes:
        path.unlink()
        return read(*args)

    monkeypatch.setattr(journal, "header", then_gone)
    assert len(list(journal.records(path, run_id, 0))) == 5


@pytest.mark.parametrize("is_there", [False, True])
def test_a_journal_that_nfs_calls_stale_is_gone_or_unreadable(
    written: tuple[Path, bytes], monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    path, run_id = written
    frames = journal._frames

    def torn(*args: Any) -> Iterator[bytes]:
        yield next(frames(*args))
        if not is_there:
            path.unlink()
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(journal, "_frames", torn)
    if is_there:
        with pytest.raises(OSError, match="Stale"):
            list(journal.records(path, run_id, 0))
    else:
        assert [one.row for one in journal.records(path, run_id, 0)] == [0]


def test_failed_rows_of_a_damaged_shard(tmp_path: Path, run: Run, source: Path) -> None:
    """`retry-errors` says what is the matter, and the run can go on."""
    output = tmp_path / "out.jsonl"
    run(source, output, shard_rows=40)
    run_dir = RunDir.of_output(output)
    os.truncate(run_dir.shard(1), run_dir.shard(1).stat().st_size - 5)
    with pytest.raises(IncompleteRunError, match=r"000001 is damaged.*put aside"):
        verbs.forget_failures(run_dir)
    assert run(source, output, shard_rows=40).num_ok == 100
    assert verify_run(run_dir).problems == []


# ---------------------------------------------------------------- outputs


def test_long_answers_make_more_row_groups_and_not_more_memory(
    tmp_path: Path, run: Run, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpcserve.batch.writers.parquet._GROUP_BYTES", 4000)
    run(source, tmp_path / "out.parquet", shard_rows=10, keep_columns=True)
    metadata = pq.ParquetFile(tmp_path / "out.parquet").metadata
    assert metadata.num_row_groups == 5
    assert metadata.num_rows == 100


def test_a_partial_merge_is_not_called_the_output(tmp_path: Path, run: Run, source: Path) -> None:
    """What has that name is whole."""
    output = tmp_path / "out.jsonl"
    run(source, output, shard_rows=40)
    output.unlink()
    run_dir = RunDir.of_output(output)
    run_dir.shard(1).unlink()
    with pytest.raises(OutputError, match="-o"):
        verbs.merge_run(run_dir, None, partial=True)
    assert not output.exists()


def test_a_shard_that_is_committed_before_its_rows_come_up_is_given_up(
    begun: tuple[RunDir, Any],
) -> None:
    run_dir, manifest = begun
    released: list[int] = []

    async def scenario() -> bool:
        one = Ledger(run_dir, manifest, "one", released.append)
        shard = one.open(Claim(manifest.shards[0], 0))
        one.lose({0})
        one.started(shard)
        await one.settle()
        one.close()
        return shard.is_lost

    assert asyncio.run(scenario())
    assert released == [0]
    assert run_dir.journals_of(0) == []
