"""Disks that refuse: every kind of call fails from some moment on, until somebody mends it."""

from __future__ import annotations

import errno
import json
import os
import pathlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from hpcserve.batch.run_dir import RunDir
from hpcserve.batch.verify import verify_run
from hpcserve.errors import IncompleteRunError

Run = Callable[..., Any]

CALLS = ("open", "write", "fsync", "link", "replace", "unlink", "pread", "scandir")
CASES = [
    *((name, number) for name in CALLS for number in (errno.EIO, errno.ESTALE)),
    *(("write", number) for number in (errno.EDQUOT, errno.ENOSPC)),
]
NUM_ROWS = 200


class Disk:
    """A layer under our file calls: those of one name, on files in `folder`, fail from a call on."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = str(folder)
        self._fails: tuple[str, int, int] | None = None
        self.calls: Counter[str] = Counter()
        # Python 3.10's pathlib took these calls when it was imported.
        bound = getattr(pathlib, "_NormalAccessor", None)
        for name in CALLS:
            call = getattr(os, name)
            watched = self._wrapped(name, call)
            monkeypatch.setattr(os, name, watched)
            if getattr(bound, name, None) is call:
                monkeypatch.setattr(bound, name, staticmethod(watched))

    @contextmanager
    def failing(self, name: str, number: int, first: int) -> Iterator[None]:
        """Within the block calls of `name` raise OSError(number), from the one of number `first`."""
        self.calls.clear()
        self._fails = (name, number, first)
        try:
            yield
        finally:
            self._fails = None

    def _wrapped(self, name: str, call: Any) -> Any:
        def watched(place: Any, *args: Any, **kwargs: Any) -> Any:
            if self._is_ours(place):
                self.calls[name] += 1
                if self._fails and self._fails[0] == name and self.calls[name] >= self._fails[2]:
                    raise OSError(self._fails[1], os.strerror(self._fails[1]), str(place))
            return call(place, *args, **kwargs)

        return watched

    def _is_ours(self, place: Any) -> bool:
        if isinstance(place, int):
            place = Path(f"/proc/self/fd/{place}").readlink()
        return str(place).startswith(self._folder)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    (tmp_path / "disk").mkdir()
    return Disk(tmp_path / "disk", monkeypatch)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    rows = [{"custom_id": f"id-{n}", "prompt": f"a {n} b"} for n in range(NUM_ROWS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("name", "number"), CASES, ids=[f"{name}-{errno.errorcode[number]}" for name, number in CASES]
)
def test_a_disk_that_refuses_ends_the_run_with_75_and_it_goes_on_afterwards(
    tmp_path: Path, run: Run, engine: Any, disk: Disk, source: Path, name: str, number: int
) -> None:
    clean, output = tmp_path / "disk" / "clean.jsonl", tmp_path / "disk" / "out.jsonl"
    options = {"shard_rows": 40, "max_rows_in_flight": 16}
    run(source, clean, **options)
    num_calls = disk.calls[name]
    assert num_calls, f"a run that never calls os.{name} proves nothing"
    codes = []
    for share in (0.1, 0.5, 0.9):
        engine.answered.clear()
        first = max(1, round(num_calls * share))
        with disk.failing(name, number, first):
            try:
                run(source, output, **options)
            except IncompleteRunError as error:
                codes.append(error.exit_code)
                assert os.strerror(number) in str(error)
            else:
                codes.append(0)
        before = list(engine.answered)
        assert run(source, output, **options).num_ok == NUM_ROWS
        assert output.read_bytes() == clean.read_bytes()
        assert verify_run(RunDir.of_output(output)).problems == []
        # Answered again: what was in flight, or had not reached the disk.
        twice = len(engine.answered) - len(set(engine.answered))
        assert len(set(engine.answered)) == NUM_ROWS
        assert twice <= len(before)
        run_dir = RunDir.of_output(output)
        run_dir.discard()
        output.unlink()
    # Files that cannot be taken away are no reason to end a run whose rows are safe.
    assert set(codes) <= ({0, 75} if name == "unlink" else {75})


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE], ids=errno.errorcode.get)
def test_an_input_that_cannot_be_read_for_a_while_fails_no_row(
    tmp_path: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    source: Path,
    ending: str,
    number: int,
) -> None:
    """The disk's failure is not the rows': they are answered when it is mended."""
    if ending == "parquet":
        import pyarrow as pa

        rows = [json.loads(line) for line in source.read_text().splitlines()]
        source = tmp_path / "in.parquet"
        pq.write_table(pa.Table.from_pylist(rows), source, row_group_size=50)
    output = tmp_path / "out.jsonl"
    broken = OSError(number, os.strerror(number))
    reads = Counter()

    def failing(call: Any, start: int) -> Any:
        def read(*args: Any, **kwargs: Any) -> Any:
            reads["all"] += 1
            if reads["all"] > start:
                raise broken
            return call(*args, **kwargs)

        return read

    with monkeypatch.context() as patch:
        if ending == "parquet":
            patch.setattr(pq.ParquetFile, "iter_batches", failing(pq.ParquetFile.iter_batches, 6))
        else:
            import hpcserve.batch.files as files

            class Stream:
                def __init__(self, raw: Any) -> None:
                    self.read = failing(raw.read, 4)
                    self.seek, self.close = raw.seek, raw.close

            patch.setattr(files, "_decompressed", lambda raw, suffix: Stream(raw))
        with pytest.raises(IncompleteRunError, match=os.strerror(number)) as raised:
            run(source, output, shard_rows=50)
    assert raised.value.exit_code == 75
    result = run(source, output, shard_rows=50)
    assert (result.num_ok, result.num_failed) == (NUM_ROWS, 0)
