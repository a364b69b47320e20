"""Inputs that are changed, touched or moved while a run goes on, or after it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hpcserve.batch import status, verbs
from hpcserve.batch.inputs import InputFile
from hpcserve.batch.run_dir import RunDir
from hpcserve.batch.verify import verify_run
from hpcserve.errors import IncompleteRunError, InputError

Run = Callable[..., Any]


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


def test_a_run_whose_folder_was_moved_is_found_as_a_whole(
    tmp_path: Path, run: Run, write_lines: Callable[..., Path]
) -> None:
    (tmp_path / "old" / "rows").mkdir(parents=True)
    rows = [{"prompt": f"a {n} b"} for n in range(20)]
    source = write_lines(tmp_path / "old" / "rows" / "in.jsonl", rows)
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
