"""CSV files as they come from elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpcserve.errors import InputError

Run = Callable[..., Any]


def test_csv_whose_first_name_is_quoted_behind_a_byte_order_mark(
    tmp_path: Path, run: Run, read_lines: Callable[..., Any]
) -> None:
    (tmp_path / "in.csv").write_bytes('\ufeff"custom_id","prompt"\r\n"x","a b"\r\n'.encode())
    run(tmp_path / "in.csv", tmp_path / "out.jsonl", shard_rows=1)
    (line,) = read_lines(tmp_path / "out.jsonl")
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
