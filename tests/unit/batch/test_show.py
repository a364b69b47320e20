"""`hpcserve batch show`: an output file as a table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpcserve.batch.show import print_answers


def test_a_row_is_named_by_its_id_or_by_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = {"choices": [{"message": {"content": "Paris"}}], "usage": {"completion_tokens": 3}}
    rows = [
        {"custom_id": "france", "response": {"body": body}, "error": None},
        {"custom_id": None, "response": None, "error": {"code": "x", "message": "y", "line": 7}},
    ]
    output = tmp_path / "answers.jsonl"
    output.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    print_answers(output, None, limit=50, failed=False)
    shown = capsys.readouterr().out
    assert "france" in shown and "Paris" in shown
    assert "line 7" in shown and "None" not in shown

    print_answers(output, None, limit=50, failed=True)
    shown = capsys.readouterr().out
    assert "line 7" in shown and "france" not in shown
