"""Inputs as they come from elsewhere: cut off, odd, changed meanwhile, moved, or given only once."""

from __future__ import annotations

import datetime
import errno
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from hpcserve.batch import status, verbs
from hpcserve.batch.formats import dataset, parquet
from hpcserve.batch.inputs import InputFile
from hpcserve.batch.run_dir import RunDir
from hpcserve.batch.verify import verify_run
from hpcserve.batch.writers import parquet as writers_parquet
from hpcserve.errors import IncompleteRunError, InputError, OutputError

Run = Callable[..., Any]


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def _codes(path: Path) -> list[str | None]:
    return [line["error"] and line["error"]["code"] for line in _read(path)]


def _rows(path: Path, num_rows: int) -> Path:
    rows = [{"custom_id": f"id-{n}", "prompt": f"a {n} b"} for n in range(num_rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# ---------------------------------------------------------------- packed files


@pytest.mark.parametrize("share", [0.5, 0.999])
def test_a_zst_file_that_is_cut_off_is_refused_and_not_a_shorter_one(
    tmp_path: Path, run: Run, engine: Any, share: float
) -> None:
    data = zstandard.compress(b"".join(b'{"prompt": "a %d"}\n' % n for n in range(40_000)))
    source = tmp_path / "in.jsonl.zst"
    source.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match="before the end of its last frame"):
        run(source, tmp_path / "out.jsonl")
    assert engine.num_started == 0


def test_frames_and_what_is_to_be_skipped_between_them(tmp_path: Path, run: Run) -> None:
    skipped = b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc"
    frames = [zstandard.compress(b'{"prompt": "a %d"}\n' % n) for n in range(300)]
    (tmp_path / "in.jsonl.zst").write_bytes(skipped + skipped.join(frames))
    assert run(tmp_path / "in.jsonl.zst", tmp_path / "out.jsonl", shard_rows=64).num_ok == 300


# ---------------------------------------------------------------- tables with odd values


def _as_text(values: list[bytes]) -> Any:
    """A column of text, as a writer that does not look makes it."""
    return pa.array(values, pa.binary()).view(pa.string())


def test_a_row_whose_text_is_no_utf8_fails_alone(tmp_path: Path, run: Run) -> None:
    prompts = _as_text([b"a \xff\xfe" if n == 5 else b"a %d" % n for n in range(50)])
    ids = _as_text([b"\xff" if n == 9 else b"id-%d" % n for n in range(50)])
    pq.write_table(pa.table({"custom_id": ids, "prompt": prompts}), tmp_path / "in.parquet")
    result = run(tmp_path / "in.parquet", tmp_path / "out.jsonl")
    assert (result.num_ok, result.errors) == (48, {"invalid_utf8": 2})
    codes = _codes(tmp_path / "out.jsonl")
    assert [number for number, code in enumerate(codes) if code] == [5, 9]
    assert verify_run(RunDir.of_output(tmp_path / "out.jsonl")).problems == []


def test_nanoseconds_are_kept_as_text(tmp_path: Path, run: Run) -> None:
    table = pa.table(
        {
            "prompt": ["a", "b"],
            "at": pa.array([1, 2_000], pa.timestamp("ns")),
            "spans": pa.array([[1], [2_000]], pa.list_(pa.duration("ns"))),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    assert run(tmp_path / "in.parquet", tmp_path / "out.jsonl", keep_columns=True).num_ok == 2
    assert [line["at"][:10] for line in _read(tmp_path / "out.jsonl")] == ["1970-01-01"] * 2


def test_a_kept_value_that_json_has_no_word_for_is_text(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
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
    assert _read(tmp_path / "out.jsonl")[0]["at"] == "2026-01-02 00:00:00"


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


# ---------------------------------------------------------------- saved datasets


def _save(folder: Path, num_batches: int) -> Path:
    folder.mkdir()
    schema = pa.schema([("prompt", pa.string())])
    with pa.ipc.new_stream(str(folder / "data.arrow"), schema) as writer:
        for number in range(num_batches):
            writer.write_batch(pa.record_batch({"prompt": [f"a {number}"]}))
    (folder / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    return folder


def test_a_dataset_that_is_cut_off_is_refused(tmp_path: Path, run: Run, engine: Any) -> None:
    path = _save(tmp_path / "data", 10) / "data.arrow"
    path.write_bytes(path.read_bytes()[:-150])
    with pytest.raises(InputError, match=r"cannot read the input .*data.arrow"):
        run(tmp_path / "data", tmp_path / "out.jsonl")
    assert engine.num_started == 0


def test_a_dataset_of_many_batches_is_read_once_through(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    open_file = dataset.Reader._open

    def counted(reader: Any, number: int) -> Any:
        opened.append(number)
        return open_file(reader, number)

    monkeypatch.setattr(dataset.Reader, "_open", counted)
    assert run(_save(tmp_path / "data", 100), tmp_path / "out.jsonl").num_ok == 100
    assert len(opened) < 10


# ---------------------------------------------------------------- csv


def test_csv_whose_first_name_is_quoted_behind_a_byte_order_mark(tmp_path: Path, run: Run) -> None:
    (tmp_path / "in.csv").write_bytes('\ufeff"custom_id","prompt"\r\n"x","a b"\r\n'.encode())
    run(tmp_path / "in.csv", tmp_path / "out.jsonl", shard_rows=1)
    (line,) = _read(tmp_path / "out.jsonl")
    assert (line["custom_id"], line["error"]) == ("x", None)


@pytest.mark.parametrize(
    ("header", "why"),
    [(b"prompt,\xff", "is no UTF-8"), (b"prompt,a,prompt", "has 'prompt' more than once")],
)
def test_csv_with_a_header_that_cannot_be_used(
    tmp_path: Path, run: Run, engine: Any, header: bytes, why: str
) -> None:
    (tmp_path / "in.csv").write_bytes(header + b"\n" + b"a,b,c"[: len(header)] + b"\n")
    with pytest.raises(InputError, match=f"the header line .*{why}"):
        run(tmp_path / "in.csv", tmp_path / "out.jsonl")
    assert engine.num_started == 0


def test_csv_columns_without_a_name_are_no_doubles(tmp_path: Path, run: Run) -> None:
    (tmp_path / "in.csv").write_text("prompt,,\na,,\n")
    assert run(tmp_path / "in.csv", tmp_path / "out.jsonl").num_ok == 1


def test_csv_lines_that_are_too_long_are_not_cut(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpcserve.batch.formats.csv.MAX_FIELD_BYTES", 1000)
    (tmp_path / "in.csv").write_text("prompt,x\na,b\n" + "y" * 900 + "," + "z" * 900 + "\n")
    with pytest.raises(InputError, match=r"line 3: the line has 1,802 bytes"):
        run(tmp_path / "in.csv", tmp_path / "out.jsonl")


# ---------------------------------------------------------------- templates


def test_a_template_fails_the_rows_that_it_cannot_be_filled_for(tmp_path: Path, run: Run) -> None:
    (tmp_path / "t.jinja").write_text("{{ 10 / n }} {{ d | dictsort }}")
    lines = ['{"n": 2, "d": {}}', '{"n": 0, "d": {}}', '{"n": 1, "d": 3}', '{"n": "x", "d": {}}']
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    template = str(tmp_path / "t.jinja")
    result = run(tmp_path / "in.jsonl", tmp_path / "out.jsonl", prompt_template=template)
    assert (result.num_ok, result.errors) == (1, {"template_error": 3})
    assert "division by zero" in _read(tmp_path / "out.jsonl")[1]["error"]["message"]


# ---------------------------------------------------------------- inputs that change


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_no_row_of_a_changed_part_is_given_out(tmp_path: Path, ending: str) -> None:
    """Else its answer would be kept when the file is mended, as if it were of the old one."""
    source = tmp_path / f"in.{ending}"
    text = "".join(json.dumps({"prompt": f"a {n} b"}) + "\n" for n in range(40))
    source.write_text(text)
    reader = InputFile(source, ending).reader(None)
    spans = [scanned.span for scanned in reader.scan(20)]
    reader.close()
    last = "a 39 b" if ending == "jsonl" else "a 38 b"  # of a CSV file the first is the header
    source.write_text(text.replace(last, "a XX b"))
    assert len(list(reader.rows(spans[0]))) == 20
    with pytest.raises(InputError, match="has changed since the run began"):
        next(iter(reader.rows(spans[1])))
    source.write_text(text)
    assert len(list(reader.rows(spans[1]))) == spans[1].num_rows
    reader.close()


def test_a_table_that_is_changed_in_place_is_noticed(tmp_path: Path, run: Run, engine: Any) -> None:
    source, other = tmp_path / "in.parquet", tmp_path / "other.parquet"
    for path, word in ((source, "a"), (other, "b")):
        prompts = [f"{word} {n:04d}" for n in range(6000)]
        pq.write_table(pa.table({"prompt": prompts}), path, row_group_size=500)
    assert source.stat().st_size == other.stat().st_size
    answer = engine.answer

    async def edit_first(request: Any) -> Any:
        if source.read_bytes() != other.read_bytes():
            source.write_bytes(other.read_bytes())
        return await answer(request)

    engine.answer = edit_first
    with pytest.raises(InputError, match="has changed since the run began"):
        run(source, tmp_path / "out.jsonl", shard_rows=500, max_rows_in_flight=2)


def test_a_table_that_is_touched_meanwhile_is_the_same(
    tmp_path: Path, run: Run, engine: Any
) -> None:
    source = tmp_path / "in.parquet"
    prompts = [f"a {n:04d}" for n in range(6000)]
    pq.write_table(pa.table({"prompt": prompts}), source, row_group_size=500)
    answer = engine.answer

    async def touch_first(request: Any) -> Any:
        if not engine.answered:
            source.touch()
        return await answer(request)

    engine.answer = touch_first
    assert run(source, tmp_path / "out.jsonl", shard_rows=500).num_ok == 6000


def test_the_columns_of_an_input_that_was_moved_are_in_the_output(
    tmp_path: Path, run: Run, engine: Any
) -> None:
    """The run began with it elsewhere; that is no reason to fail at the very end."""
    table = pa.table({"prompt": [f"a {n}" for n in range(60)], "score": list(range(60))})
    source, output = tmp_path / "in.parquet", tmp_path / "out.parquet"
    pq.write_table(table, source)
    answer = engine.answer

    async def ends(request: Any) -> Any:
        if len(engine.answered) >= 30:
            raise IncompleteRunError("told to stop")
        return await answer(request)

    engine.answer = ends
    with pytest.raises(IncompleteRunError):
        run(source, output, keep_columns=True, max_rows_in_flight=4)
    engine.answer = answer
    (tmp_path / "moved").mkdir()
    moved = Path(shutil.move(source, tmp_path / "moved"))
    assert run(moved, output, keep_columns=True).num_ok == 60
    assert pq.read_table(output).column("score").to_pylist() == list(range(60))


# ---------------------------------------------------------------- stdin


class _Stdin(io.BytesIO):
    def __init__(self, data: bytes = b"", *, is_terminal: bool = False) -> None:
        super().__init__(data)
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.mark.parametrize("is_terminal", [False, True])
def test_rows_of_stdin_need_not_be_given_twice(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    """`batch resume` has no pipe before it."""
    rows = b'{"prompt": "a"}\n{"prompt": "b"}\n'
    monkeypatch.setattr("hpcserve.batch.inputs._stdin", lambda: _Stdin(rows))
    output = tmp_path / "out.jsonl"
    run("-", output)
    wanted = output.read_bytes()
    run_dir = RunDir.of_output(output)
    run_dir.shard(0).unlink()
    output.unlink()
    later = _Stdin(b"typed" if is_terminal else b"", is_terminal=is_terminal)
    monkeypatch.setattr("hpcserve.batch.inputs._stdin", lambda: later)
    assert run("-", output).num_ok == 2
    assert output.read_bytes() == wanted
    assert verify_run(run_dir).problems == []
    # Other rows are another run, still.
    monkeypatch.setattr("hpcserve.batch.inputs._stdin", lambda: _Stdin(b'{"prompt": "c"}\n'))
    with pytest.raises(InputError, match="begun with other content"):
        run("-", output)


def test_stdin_that_says_nothing_or_is_asked_twice(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpcserve.batch.inputs._stdin", _Stdin)
    with pytest.raises(InputError, match="stdin is empty"):
        run("-", tmp_path / "out.jsonl")
    with pytest.raises(InputError, match="is given twice"):
        run(["-", "-"], tmp_path / "out.jsonl")
    assert not list(tmp_path.rglob("*.tmp"))


# ---------------------------------------------------------------- outputs over inputs


def test_no_output_takes_the_place_of_an_input(tmp_path: Path, run: Run, engine: Any) -> None:
    source = _rows(tmp_path / "out.errors.jsonl", 3)
    with pytest.raises(OutputError, match=r"same file: .*out.errors.jsonl"):
        run(source, tmp_path / "out.jsonl", errors="file")
    assert engine.num_started == 0
    assert run(source, tmp_path / "out.jsonl").num_ok == 3
    before = source.read_bytes()
    run_dir = RunDir.of_output(tmp_path / "out.jsonl")
    with pytest.raises(OutputError, match="same file"):
        verbs.merge_run(run_dir, str(source), partial=False)
    assert source.read_bytes() == before


@pytest.mark.parametrize("name", ["data", "data/*.jsonl"])
def test_outputs_among_what_a_folder_or_a_glob_finds_are_not_meant(
    tmp_path: Path, run: Run, name: str
) -> None:
    """The run is complete, or its failed rows are answered again: the files are there by then."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "in.jsonl").write_text('{"prompt": "a"}\n{"prompt": "poison"}\n')
    output = tmp_path / "data" / "out.jsonl"
    for _ in range(2):
        result = run(tmp_path / name, output, errors="file")
        assert (result.num_ok, result.num_failed) == (1, 1)
    assert verbs.forget_failures(RunDir.of_output(output)) == 1
    assert run(tmp_path / name, output, errors="file").num_failed == 1
    with pytest.raises(OutputError, match="same file"):
        run(output, output, errors="file")


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


def test_a_run_whose_folder_was_moved_is_found_as_a_whole(tmp_path: Path, run: Run) -> None:
    (tmp_path / "old" / "rows").mkdir(parents=True)
    source = _rows(tmp_path / "old" / "rows" / "in.jsonl", 20)
    run(source, tmp_path / "old" / "out.jsonl")
    (tmp_path / "old").rename(tmp_path / "new")
    run_dir = RunDir.find(str(tmp_path / "new" / "out.jsonl"))
    assert verify_run(run_dir).problems == []
    found = status.of_run(run_dir)
    assert (found["state"], found["output"]) == ("complete", str(tmp_path / "new" / "out.jsonl"))
    wanted = run_dir.output.read_bytes()
    run_dir.output.unlink()
    assert verbs.merge_run(run_dir, None, partial=False)[1] == 20
    assert run_dir.output.read_bytes() == wanted
