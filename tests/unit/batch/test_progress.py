"""What a run says while it goes on, and at its end."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[..., Any]


def test_progress_and_summary_in_a_log(
    tmp_path: Path, run: Run, engine: Any, write_lines: Callable[..., Path]
) -> None:
    rows = [{"prompt": "a b", "model": "gpt-4"}] * 100 + [b"no json"]
    source = write_lines(tmp_path / "in.jsonl", rows)
    log = io.StringIO()
    answer = engine.answer

    async def answered(request: Any) -> Any:
        wanted = min(4, 1 + len(engine.answered) // 20)  # lines that come before this answer
        while len(engine.answered) >= 20 and log.getvalue().count("batch: ") < wanted:
            await asyncio.sleep(0.01)
        return await answer(request)

    engine.answer = answered
    run(source, tmp_path / "out.jsonl", stream=log, log_interval_s=0.05, max_rows_in_flight=8)
    lines = log.getvalue().splitlines()
    progress = [line for line in lines if line.startswith("batch: ")]
    assert len(progress) > 3
    assert "cache hits 50%" in progress[-1]
    assert "left" in progress[-1]
    text = " ".join(log.getvalue().split())
    assert "rows answered 100" in text
    assert "rows failed 1 invalid_json_line 1" in text
    assert "prompt tokens 200 from the cache 100 (50%)" in text
    assert "100 rows with the name of another model, 'gpt-4'" in text
    assert str(tmp_path / "out.jsonl") in text
    assert "\x1b" not in log.getvalue()


def test_on_a_terminal_there_is_a_bar(
    tmp_path: Path, run: Run, engine: Any, write_lines: Callable[..., Path]
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    engine.delay_s = 0.05
    source = write_lines(tmp_path / "in.jsonl", [{"prompt": "a b"}] * 100)
    screen = Terminal()
    run(source, tmp_path / "out.jsonl", stream=screen, max_rows_in_flight=8)
    assert "rows (" in screen.getvalue()
    assert "batch: " not in screen.getvalue()
