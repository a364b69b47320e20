"""The requests that rows become: their own parameters, defaults, seeds and templates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpcserve.config.batch import RowDefaults
from hpcserve.errors import ConfigError

Run = Callable[..., Any]


def test_rows_keep_their_parameters_and_take_the_defaults(
    tmp_path: Path, run: Run, engine: Any, write_lines: Callable[..., Path]
) -> None:
    rows = [
        {"prompt": "a", "temperature": 0.5},
        {"prompt": "b", "stream": True, "seed": 5},
        {"messages": [{"role": "user", "content": "c"}], "max_completion_tokens": 3},
    ]
    source = write_lines(tmp_path / "in.jsonl", rows)
    defaults = RowDefaults(max_tokens=9, temperature=0.0, sampling=("top_p=0.5", "stop=x"))
    run(source, tmp_path / "out.jsonl", defaults)
    first, second, third = engine.bodies
    assert (first["temperature"], second["temperature"]) == (0.5, 0.0)
    assert (first["max_tokens"], first["top_p"], first["stop"]) == (9, 0.5, "x")
    assert "stream" not in second
    assert second["seed"] == 5
    assert "max_tokens" not in third


def test_seeds_belong_to_the_row_and_the_run(
    tmp_path: Path, run: Run, engine: Any, write_lines: Callable[..., Path]
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"prompt": "a"}] * 3)
    for seed in (0, 0, 1):
        run(source, tmp_path / "out.jsonl", seed=seed, fresh=True)
    seeds = [body["seed"] for body in engine.bodies]
    assert seeds[:3] == seeds[3:6]
    assert len(set(seeds)) == 6


def test_a_prompt_may_be_asked_as_a_message(
    tmp_path: Path, run: Run, engine: Any, write_lines: Callable[..., Path]
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"prompt": "a"}])
    run(source, tmp_path / "out.jsonl", apply_chat_template=True)
    assert engine.bodies[0]["messages"] == [{"role": "user", "content": "a"}]


@pytest.mark.parametrize(
    ("pair", "message"), [("top_q=1", "did you mean 'top_p'"), ("top_p", "expected KEY=VALUE")]
)
def test_a_wrong_default_is_refused(
    tmp_path: Path, run: Run, pair: str, message: str, write_lines: Callable[..., Path]
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"prompt": "a"}])
    with pytest.raises(ConfigError, match=message):
        run(source, tmp_path / "out.jsonl", RowDefaults(sampling=(pair,)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]


def test_a_template_fails_the_rows_that_it_cannot_be_filled_for(
    tmp_path: Path, run: Run, read_lines: Callable[..., Any]
) -> None:
    (tmp_path / "t.jinja").write_text("{{ 10 / n }} {{ d | dictsort }}")
    lines = ['{"n": 2, "d": {}}', '{"n": 0, "d": {}}', '{"n": 1, "d": 3}', '{"n": "x", "d": {}}']
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    template = str(tmp_path / "t.jinja")
    result = run(tmp_path / "in.jsonl", tmp_path / "out.jsonl", prompt_template=template)
    assert (result.num_ok, result.errors) == (1, {"template_error": 3})
    assert "division by zero" in read_lines(tmp_path / "out.jsonl")[1]["error"]["message"]
