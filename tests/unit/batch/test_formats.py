"""Every input and output format, through whole runs."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from hpcserve.batch.run_dir import RunDir
from hpcserve.batch.verbs import forget_failures
from hpcserve.batch.verify import verify_run
from hpcserve.errors import ConfigError, InputError

Run = Callable[..., Any]

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def _texts(path: Path) -> list[str | None]:
    found = []
    for line in _read(path):
        choices = ((line["response"] or {}).get("body") or {}).get("choices")
        choice = choices[0] if choices else {}
        found.append(choice.get("text", choice.get("message", {}).get("content")))
    return found


def _parquet(path: Path, num_rows: int, group: int = 50) -> Path:
    rows = {
        "custom_id": [f"id-{n}" for n in range(num_rows)],
        "prompt": [f"a {n}" for n in range(num_rows)],
        "score": pa.array([n / 2 for n in range(num_rows)], pa.float32()),
        "kind": pa.array(["x", None] * (num_rows // 2)).dictionary_encode(),
    }
    pq.write_table(pa.table(rows), path, row_group_size=group)
    return path


def test_parquet_in_jsonl_out_and_back(tmp_path: Path, run: Run) -> None:
    source = _parquet(tmp_path / "in.parquet", 300)
    run(source, tmp_path / "out.jsonl", shard_rows=32)
    assert _texts(tmp_path / "out.jsonl") == [f"{n} a" for n in range(300)]
    result = run(source, tmp_path / "out.parquet", shard_rows=32, keep_columns=True)
    assert result.num_ok == 300
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.field("score").type == pa.float32()
    assert table.column("score").to_pylist() == [n / 2 for n in range(300)]
    assert table.column("text").to_pylist() == [f"{n} a" for n in range(300)]
    assert set(table.column("status").to_pylist()) == {"ok"}
    for name in ("out.jsonl", "out.parquet"):
        assert verify_run(RunDir.of_output(tmp_path / name)).problems == []


def test_parquet_messages_are_a_list_of_structs(tmp_path: Path, run: Run, engine: Any) -> None:
    rows = [[{"role": "system", "content": None}, {"role": "user", "content": f"b {n}"}]
            for n in range(10)]  # fmt: skip
    pq.write_table(pa.table({"talk": pa.array(rows, MESSAGES)}), tmp_path / "in.parquet")
    run(tmp_path / "in.parquet", tmp_path / "out.jsonl", messages_column="talk")
    assert _texts(tmp_path / "out.jsonl") == [f"{n} b" for n in range(10)]
    assert {"role": "system"} in engine.bodies[0]["messages"]


def test_a_damaged_row_group_makes_errors_of_its_rows_only(tmp_path: Path, run: Run) -> None:
    path = _parquet(tmp_path / "in.parquet", 150)
    data = bytearray(path.read_bytes())
    column = pq.ParquetFile(path).metadata.row_group(1).column(1)
    for offset in range(column.data_page_offset, column.data_page_offset + 40):
        data[offset] = 0xFF
    path.write_bytes(data)
    result = run(path, tmp_path / "out.jsonl", shard_rows=20)
    lines = _read(tmp_path / "out.jsonl")
    bad = [number for number, line in enumerate(lines) if line["error"]]
    assert bad == list(range(50, 100))
    assert result.errors == {"unreadable_row": 50}
    assert [line["error"]["line"] for line in lines if line["error"]] == list(range(51, 101))


def test_a_parquet_file_without_its_end_is_refused(tmp_path: Path, run: Run, engine: Any) -> None:
    path = _parquet(tmp_path / "in.parquet", 100)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(InputError, match="cannot read the input"):
        run(path, tmp_path / "out.jsonl")
    assert engine.num_started == 0


def test_a_table_without_rows(tmp_path: Path, run: Run) -> None:
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "in.parquet")
    with pytest.raises(InputError, match="has no rows"):
        run(tmp_path / "in.parquet", tmp_path / "out.jsonl")


def test_files_of_different_columns(tmp_path: Path, run: Run) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"prompt": ["a b"], "x": [1]}), tmp_path / "in" / "1.parquet")
    pq.write_table(pa.table({"prompt": ["c d"], "x": ["t"]}), tmp_path / "in" / "2.parquet")
    pq.write_table(pa.table({"other": ["c d"]}), tmp_path / "in" / "3.parquet")
    run(tmp_path / "in", tmp_path / "out.parquet", keep_columns=True)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column("text").to_pylist() == ["b a", "d c", None]
    assert table.column("error_code").to_pylist() == [None, None, "unknown_row"]


def test_csv(tmp_path: Path, run: Run) -> None:
    text = (
        "\ufeffname,prompt\r\n"
        'one,"a, ""b""\nc"\r\n'
        "\r\n"
        "two,d\u2028e f\r\n"
        "three,x,too many\r\n"
        "four,\r\n"
        "five,g h"
    )
    (tmp_path / "in.csv").write_bytes(text.encode().replace(b"f\r\n", b"f\xc3\xa9\r\n"))
    result = run(tmp_path / "in.csv", tmp_path / "out.jsonl", id_column="name", shard_rows=2)
    lines = _read(tmp_path / "out.jsonl")
    assert [line["custom_id"] for line in lines] == ["one", "two", None, "four", "five"]
    assert [line["error"] and line["error"]["code"] for line in lines] == [
        None, None, "wrong_columns", "missing_column", None,
    ]  # fmt: skip
    assert [line["error"]["line"] for line in lines if line["error"]] == [6, 7]
    assert _texts(tmp_path / "out.jsonl")[0] == 'c "b" a,'
    assert result.num_blank == 1
    assert verify_run(RunDir.of_output(tmp_path / "out.jsonl")).problems == []


def test_csv_that_is_no_utf8(tmp_path: Path, run: Run) -> None:
    (tmp_path / "in.csv").write_bytes(b"prompt\n\xff\xfe\ngood\n")
    run(tmp_path / "in.csv", tmp_path / "out.jsonl")
    assert [bool(line["error"]) for line in _read(tmp_path / "out.jsonl")] == [True, False]


def _save_dataset(folder: Path, num_files: int) -> None:
    """As `datasets` writes it: Arrow streams, and a file that names them."""
    folder.mkdir()
    names = []
    for number in range(num_files):
        names.append(f"data-{number:05d}-of-{num_files:05d}.arrow")
        schema = pa.schema([("prompt", pa.string())])
        with pa.ipc.new_stream(str(folder / names[-1]), schema) as writer:
            for start in (0, 7):
                prompts = [f"a {number} {n}" for n in range(start, start + 7)]
                writer.write_batch(pa.record_batch({"prompt": prompts}))
    state = {"_data_files": [{"filename": name} for name in names], "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")


def test_a_saved_dataset(tmp_path: Path, run: Run) -> None:
    _save_dataset(tmp_path / "data", 3)
    run(tmp_path / "data", tmp_path / "out.jsonl", shard_rows=4)
    wanted = [f"{n} {file} a" for file in range(3) for n in range(14)]
    assert _texts(tmp_path / "out.jsonl") == wanted


def test_a_dataset_of_splits_names_them(tmp_path: Path, run: Run) -> None:
    (tmp_path / "data").mkdir()
    _save_dataset(tmp_path / "data" / "train", 1)
    (tmp_path / "data" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(InputError, match=r"several splits; name one of: .*data/train"):
        run(tmp_path / "data", tmp_path / "out.jsonl")


def test_several_files_in_the_order_given(tmp_path: Path, run: Run) -> None:
    (tmp_path / "b.jsonl").write_text('{"prompt": "b 1"}\n{"prompt": "b 2"}\n')
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "a 1"}\nbad\n'))
    names = [str(tmp_path / "b.jsonl"), str(tmp_path / "a*.gz")]
    run(names, tmp_path / "out.jsonl")
    lines = _read(tmp_path / "out.jsonl")
    assert [line["custom_id"] for line in lines] == [
        "file-1-row-1", "file-1-row-2", "file-2-row-1", None,
    ]  # fmt: skip
    assert lines[3]["error"]["file"] == "a.jsonl.gz"
    assert len({line["id"] for line in lines}) == 4


def test_duplicates_are_refused_with_their_lines(tmp_path: Path, run: Run, engine: Any) -> None:
    rows = [{"custom_id": "x" if n in (3, 7) else f"id-{n}", "prompt": "a"} for n in range(10)]
    rows[5]["custom_id"] = "row-9"
    del rows[8]["custom_id"]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"'x' \(line 4, line 8\); 'row-9' \(line 6, line 9\)"):
        run(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert engine.num_started == 0
    assert run(tmp_path / "in.jsonl", tmp_path / "out.jsonl", id_column="none").num_ok == 10


def test_numbers_and_texts_are_different_names(tmp_path: Path, run: Run) -> None:
    (tmp_path / "in.jsonl").write_text(
        '{"custom_id": 1, "prompt": "a"}\n{"custom_id": "1", "prompt": "a"}\n'
        '{"custom_id": "%s", "prompt": "a"}\n' % ("x" * 10_000)
    )
    run(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert [line["custom_id"] for line in _read(tmp_path / "out.jsonl")] == [1, "1", "x" * 10_000]


def test_a_template_and_a_system_prompt(tmp_path: Path, run: Run, engine: Any) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "long", "n": 3}\n{"n": 4}\n')
    (tmp_path / "t.jinja").write_text("Say {{ text }} {{ n }} times")
    options = {"prompt_template": str(tmp_path / "t.jinja"), "system_prompt": "Be kind"}
    run(tmp_path / "in.jsonl", tmp_path / "out.jsonl", keep_columns=True, **options)
    first, second = _read(tmp_path / "out.jsonl")
    assert engine.bodies[0]["messages"] == [
        {"role": "system", "content": "Be kind"},
        {"role": "user", "content": "Say long 3 times"},
    ]
    assert (first["text"], first["n"]) == ("long", 3)
    assert second["error"]["code"] == "template_error"
    assert "'text' is undefined" in second["error"]["message"]


def test_a_template_that_is_none_is_refused(tmp_path: Path, run: Run) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "long"}\n')
    (tmp_path / "t.jinja").write_text("{{ text")
    with pytest.raises(ConfigError, match="the template"):
        run(
            tmp_path / "in.jsonl", tmp_path / "out.jsonl", prompt_template=str(tmp_path / "t.jinja")
        )


def test_a_line_of_50_mb_and_a_longer_one_than_allowed(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpcserve.batch.formats.jsonl.MAX_LINE_BYTES", 1 << 20)
    with (tmp_path / "in.jsonl").open("wb") as stream:
        stream.write(b'{"prompt": "a b"}\n{"prompt": "' + b"x" * 50_000_000 + b'"}\n')
        stream.write(b'{"prompt": "c d"}\n')
    run(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    lines = _read(tmp_path / "out.jsonl")
    assert [line["error"] and line["error"]["code"] for line in lines] == [
        None, "line_too_long", None,
    ]  # fmt: skip


@pytest.mark.parametrize("ending", ["parquet", "jsonl.gz", "jsonl.zst"])
def test_failed_rows_go_to_a_file_of_their_own_in_every_format(
    tmp_path: Path, run: Run, ending: str
) -> None:
    rows = [{"custom_id": f"id-{n}", "prompt": "poison" if n % 10 == 3 else f"a {n}", "extra": n}
            for n in range(100)]  # fmt: skip
    source = tmp_path / "in.parquet"
    pq.write_table(pa.Table.from_pylist(rows), source, row_group_size=30)
    output = tmp_path / f"out.{ending}"
    options = {"errors": "file", "keep_columns": True, "shard_rows": 16}
    result = run(source, output, **options)
    assert (result.num_ok, result.num_failed) == (90, 10)
    errors = tmp_path / f"out.errors.{ending}"
    if ending == "parquet":
        good, bad = pq.read_table(output).to_pylist(), pq.read_table(errors).to_pylist()
        assert {one["status"] for one in good} == {"ok"}
        assert all("poison" in one["error_message"] for one in bad)
        assert all(one["text"] is None for one in bad)
        assert [one["extra"] for one in bad] == list(range(3, 100, 10))
    else:
        unpack = gzip.decompress if ending.endswith("gz") else _unzst
        raw = [unpack(one.read_bytes()) for one in (output, errors)]
        good, bad = ([json.loads(line) for line in one.splitlines()] for one in raw)
        assert all(one["error"] for one in bad)
    assert [one["custom_id"] for one in good] == [f"id-{n}" for n in range(100) if n % 10 != 3]
    assert [one["custom_id"] for one in bad] == [f"id-{n}" for n in range(3, 100, 10)]
    assert verify_run(RunDir.of_output(output)).problems == []
    # Answered again, they are answers, and the other file is empty, not gone.
    assert forget_failures(RunDir.of_output(output)) == 10
    assert run(source, output, **options).num_failed == 10
    errors.unlink()
    assert "there is no output" in verify_run(RunDir.of_output(output)).problems[0]


def _unzst(data: bytes) -> bytes:
    return zstandard.ZstdDecompressor().stream_reader(data).read()
