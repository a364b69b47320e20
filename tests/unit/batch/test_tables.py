"""Parquet tables with odd values, and large ones."""

from __future__ import annotations

import datetime
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hpcserve.batch.formats import parquet
from hpcserve.batch.run_dir import RunDir
from hpcserve.batch.verify import verify_run
from hpcserve.batch.writers import parquet as writers_parquet
from hpcserve.errors import IncompleteRunError, InputError

Run = Callable[..., Any]


def _as_text(values: list[bytes]) -> Any:
    """A column of text, as a writer that does not look makes it."""
    return pa.array(values, pa.binary()).view(pa.string())


def test_a_row_whose_text_is_no_utf8_fails_alone(
    tmp_path: Path, run: Run, read_lines: Callable[..., Any]
) -> None:
    prompts = _as_text([b"a \xff\xfe" if n == 5 else b"a %d" % n for n in range(50)])
    ids = _as_text([b"\xff" if n == 9 else b"id-%d" % n for n in range(50)])
    pq.write_table(pa.table({"custom_id": ids, "prompt": prompts}), tmp_path / "in.parquet")
    result = run(tmp_path / "in.parquet", tmp_path / "out.jsonl")
    assert (result.num_ok, result.errors) == (48, {"invalid_utf8": 2})
    lines = read_lines(tmp_path / "out.jsonl")
    assert [number for number, line in enumerate(lines) if line["error"]] == [5, 9]
    assert verify_run(RunDir.of_output(tmp_path / "out.jsonl")).problems == []


def test_nanoseconds_are_kept_as_text(
    tmp_path: Path, run: Run, read_lines: Callable[..., Any]
) -> None:
    table = pa.table(
        {
            "prompt": ["a", "b"],
            "at": pa.array([1, 2_000], pa.timestamp("ns")),
            "spans": pa.array([[1], [2_000]], pa.list_(pa.duration("ns"))),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    assert run(tmp_path / "in.parquet", tmp_path / "out.jsonl", keep_columns=True).num_ok == 2
    assert [line["at"][:10] for line in read_lines(tmp_path / "out.jsonl")] == ["1970-01-01"] * 2


def test_a_kept_value_that_json_has_no_word_for_is_text(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, read_lines: Callable[..., Any]
) -> None:
    """Such as a time stamp of pandas, where that is installed."""

    class Stamp(datetime.datetime):
        pass

    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"prompt": ["a"], "at": [datetime.datetime(2026, 1, 2)]}), source)
    record = parquet.Reader.decode

    def decode(reader: Any, row: Any) -> Any:
        return {**record(reader, row), "at": Stamp(2026, 1, 2)}

    monkeypatch.setattr(parquet.Reader, "decode", decode)
    assert run(source, tmp_path / "out.jsonl", keep_columns=True).num_ok == 1
    assert read_lines(tmp_path / "out.jsonl")[0]["at"] == "2026-01-02 00:00:00"


def test_a_row_group_as_big_as_the_file_is_read_in_pieces(tmp_path: Path) -> None:
    num_rows = 20_000
    texts = [f"{number:06d}" * 170 for number in range(num_rows)]
    path = tmp_path / "in.parquet"
    table = pa.table({"custom_id": texts, "prompt": texts})
    pq.write_table(table, path, row_group_size=num_rows, compression="none", use_dictionary=False)
    del table
    before = pa.total_allocated_bytes()
    reader = parquet.Reader(path)
    most = held = 0
    for scanned in reader.scan(2048):
        most = max(most, pa.total_allocated_bytes() - before)
        for _ in reader.rows(scanned.span):
            held += 1
        most = max(most, pa.total_allocated_bytes() - before)
    reader.close()
    assert held == num_rows
    assert path.stat().st_size > 40e6
    assert most < 20e6


def test_names_of_rows_are_read_in_pieces_too(tmp_path: Path) -> None:
    pq.write_table(pa.table({"custom_id": [str(n) for n in range(9000)]}), tmp_path / "in.parquet")
    reader = parquet.Reader(tmp_path / "in.parquet")
    batches, given = reader.batches, []

    def counted(part: Any, columns: Any) -> Any:
        for batch in batches(part, columns):
            given.append(batch.num_rows)
            yield batch

    reader.batches = counted  # type: ignore[method-assign]
    first = next(iter(reader.scan(2048)))
    assert list(first.ids) == [str(n) for n in range(2048)]
    assert sum(given) < 9000
    reader.close()


def test_a_table_with_two_columns_of_one_name_is_refused_before_anything_runs(
    tmp_path: Path, run: Run, engine: Any
) -> None:
    """What is to be kept of it could not be written, at the very end."""
    table = pa.table([["a"], [1], [2]], names=["prompt", "x", "x"])
    pq.write_table(table, tmp_path / "in.parquet")
    with pytest.raises(InputError, match="has the column 'x' more than once"):
        run(tmp_path / "in.parquet", tmp_path / "out.parquet", keep_columns=True)
    assert engine.num_started == 0


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_kept_columns_are_not_nulls_because_the_disk_failed_for_a_while(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    source, output = tmp_path / "in.parquet", tmp_path / "out.parquet"
    pq.write_table(pa.table({"prompt": ["a", "b"], "score": [1, 2]}), source)

    def broken(reader: Any, span: Any) -> Any:
        raise OSError(number, os.strerror(number))

    run(source, tmp_path / "other.parquet", keep_columns=True)
    with monkeypatch.context() as patch:
        patch.setattr("hpcserve.batch.writers.parquet.Writer._input_of", _broken_once(broken))
        with pytest.raises(IncompleteRunError, match=os.strerror(number)):
            run(source, output, keep_columns=True)
    assert not output.exists()
    run(source, output, keep_columns=True)
    assert pq.read_table(output).column("score").to_pylist() == [1, 2]


def _broken_once(broken: Any) -> Any:
    """The writer's look at the input's columns, with a disk that fails under it."""
    look = writers_parquet.Writer._input_of

    def looked(writer: Any, number: int) -> Any:
        for reader in writer._readers:
            reader.table_of = lambda span, reader=reader: broken(reader, span)
        return look(writer, number)

    return looked
