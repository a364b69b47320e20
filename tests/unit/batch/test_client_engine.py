"""`hpcserve batch` from the command line, through the real client to a core without a model."""

from __future__ import annotations

import asyncio
import functools
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hpcserve.batch import client_engine
from hpcserve.cli.main import main
from hpcserve.config.generation import sampling_defaults
from hpcserve.config.model import ModelConfig
from hpcserve.errors import RequestError
from hpcserve.fake_engine import write_byte_tokenizer
from hpcserve.tokenizer.tokenizer import Tokenizer


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a byte tokenizer, whose engine echoes the prompt."""
    backend = functools.partial(client_engine.ClientBackend, module="hpcserve.fake_engine")
    monkeypatch.setattr(client_engine, "ClientBackend", backend)
    folder = tmp_path / "echo"
    folder.mkdir()
    yield write_byte_tokenizer(folder)


def _batch(folder: Path, rows: list[Any], *args: str, model: Path, output: str = "") -> Result:
    source = folder / "in.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    out = output or str(folder / "out.jsonl")
    return CliRunner().invoke(main, ["batch", str(source), "-o", out, "--model", str(model), *args])


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_all_rows_answered_is_exit_0(tmp_path: Path, model: Path) -> None:
    rows = [
        {"prompt": "héllo", "max_tokens": 50},
        {"custom_id": "chat", "url": "/v1/chat/completions", "method": "POST",
         "body": {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}},
        {"custom_id": "two", "url": "/v1/completions", "method": "POST",
         "body": {"prompt": ["a", "b"], "n": 2, "max_tokens": 4}},
        {"custom_id": "ids", "prompt": [104, 105]},
    ]  # fmt: skip
    result = _batch(tmp_path, rows, model=model)
    assert result.exit_code == 0, result.stderr
    plain, chat, two, ids = (line["response"]["body"] for line in _read(tmp_path / "out.jsonl"))
    assert plain["choices"][0]["text"] == "héllo"
    assert plain["usage"]["prompt_tokens"] == 6
    assert plain["usage"]["prompt_tokens_details"] == {"cached_tokens": 3}
    assert chat["object"] == "chat.completion"
    assert chat["model"] == "echo"
    assert chat["choices"][0]["message"]["content"].startswith("user\nhi")
    assert [choice["text"] for choice in two["choices"]] == ["a", "a", "b", "b"]
    assert [choice["index"] for choice in two["choices"]] == [0, 1, 2, 3]
    assert ids["choices"][0]["text"] == "hi"
    bodies = [plain, chat, two, ids]
    assert len({body["id"] for body in bodies}) == 4
    assert "rows answered" in result.stderr
    assert "another model" not in result.stderr


def test_rows_are_the_same_when_another_process_has_prepared_them(model: Path) -> None:
    recipe = client_engine.ClientRecipe({"model": str(model)}, {"top_k": 5})
    other = pickle.loads(pickle.dumps(recipe)).make()
    for url, body in (
        ("/v1/completions", {"prompt": "héllo", "echo": True, "logprobs": 1, "max_tokens": 3}),
        ("/v1/completions", {"prompt": ["a", "bc"], "n": 2, "seed": 7}),
        ("/v1/completions", {"prompt": [104, 105]}),
        (
            "/v1/chat/completions",
            {
                "messages": [{"role": "user", "content": "hi"}],
                "separate_reasoning": True,
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
            },
        ),
    ):
        mine = recipe.make().prepare(url, body)
        its = pickle.loads(pickle.dumps(other.prepare(url, body)))
        assert (its.num_tokens, its.prefix) == (mine.num_tokens, mine.prefix)
        assert its.payload.body == mine.payload.body
        assert its.payload.inputs == mine.payload.inputs
        assert its.payload.inputs[0].params.top_k == 5
        assert [one.tolist() for one in its.payload.ids] == [
            one.tolist() for one in mine.payload.ids
        ]


def test_failed_rows_are_exit_3_and_say_where(tmp_path: Path, model: Path) -> None:
    rows = [{"prompt": "a"}, "nonsense", {"prompt": "b", "temperature": -1}, {"prompt": ""}]
    rows.append({"prompt": "x", "max_tokens": 5000})
    rows.append({"prompt": "x", "colour": "blue"})
    rows.append({"url": "/v1/completions", "body": {"prompt": "x", "suffix": "y"}})
    result = _batch(tmp_path, rows, model=model)
    assert result.exit_code == 3
    assert "5 of 7 rows failed; the first is line 2: the line is no JSON" in result.stderr
    lines = _read(tmp_path / "out.jsonl")
    errors = [line["error"] and line["error"]["message"] for line in lines]
    assert errors[0] is None
    assert "temperature" in errors[2]
    assert "empty" in errors[3]
    assert "max_tokens is 5000" in errors[4]
    assert errors[5] is None, "a column of a plain row that nobody knows is no parameter"
    assert "suffix" in errors[6]
    assert "column 'colour' of 1 row" in result.stderr


def test_a_prompt_that_is_too_long_names_its_field(tmp_path: Path, model: Path) -> None:
    long, far_too_long = "a" * 5000, "a" * 50_000
    rows = [{"prompt": long}, {"prompt": far_too_long}]
    rows += [{"messages": [{"role": "user", "content": text}]} for text in (long, far_too_long)]
    result = _batch(tmp_path, rows, model=model)
    assert result.exit_code == 3, result.stderr
    errors = [line["response"]["body"]["error"] for line in _read(tmp_path / "out.jsonl")]
    assert {one["code"] for one in errors} == {"context_length_exceeded"}
    assert [one["param"] for one in errors] == ["prompt", "prompt", "messages", "messages"]


def test_stdin_and_stdout(tmp_path: Path, model: Path) -> None:
    result = CliRunner().invoke(
        main,
        ["batch", "-i", "-", "-o", "-", "--model", str(model), "--max-tokens", "2"],
        input='{"prompt": "abcdef"}\n',
    )
    assert result.exit_code == 0, result.stderr
    (line,) = [json.loads(text) for text in result.stdout.splitlines()]
    assert line["response"]["body"]["choices"][0]["text"] == "ab"
    assert "answers: stdout" in result.stderr


def test_settings_come_from_a_file_too(tmp_path: Path, model: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("max-tokens: 3\n", encoding="utf-8")
    result = _batch(tmp_path, [{"prompt": "abcdef"}], "--config", str(config), model=model)
    assert result.exit_code == 0, result.stderr
    (line,) = _read(tmp_path / "out.jsonl")
    assert line["response"]["body"]["choices"][0]["text"] == "abc"


def test_a_row_that_kills_every_engine_is_quarantined(tmp_path: Path, model: Path) -> None:
    """This core lives for three steps: the short row is through by then, the long one never."""
    rows = [{"prompt": "a", "max_tokens": 1}, {"prompt": "b" * 60, "max_tokens": 60}]
    result = _batch(tmp_path, rows, "--seed", "1", model=model)
    assert result.exit_code == 3
    short, long = _read(tmp_path / "out.jsonl")
    assert short["error"] is None
    assert long["error"]["code"] == "engine_killed"
    assert long["response"]["status_code"] == 500


def test_an_engine_that_does_not_start_is_no_end_of_the_run(tmp_path: Path, model: Path) -> None:
    result = _batch(tmp_path, [{"prompt": "a"}], "--seed", "5", model=model)
    assert result.exit_code != 0
    assert "no config.json in it" in result.stderr
    assert not (tmp_path / "out.jsonl").exists()
    again = _batch(tmp_path, [{"prompt": "a"}], "--seed", "5", model=model)
    assert again.exit_code == result.exit_code


def test_a_missing_model_is_one_line(tmp_path: Path, model: Path) -> None:
    result = _batch(tmp_path, [{"prompt": "a"}], model=tmp_path / "none")
    assert result.exit_code == 2
    assert result.stderr == f"error: there is no model folder {tmp_path / 'none'}\n"


def test_show_puts_answers_beside_their_questions(tmp_path: Path, model: Path) -> None:
    rows = [
        {"prompt": "question one", "max_tokens": 20},
        "nonsense",
        {"messages": [{"role": "user", "content": "q2"}, {"role": "assistant", "content": "a2"},
                      {"role": "user", "content": "q3"}]},
    ]  # fmt: skip
    _batch(tmp_path, rows, model=model)
    shown = CliRunner().invoke(
        main,
        ["batch", "show", str(tmp_path / "out.jsonl"), "--input", str(tmp_path / "in.jsonl")],
    )
    assert shown.exit_code == 0
    for text in ("question one", "invalid_json_line", "assistant: a2", "tokens"):
        assert text in shown.stdout
    failed = CliRunner().invoke(main, ["batch", "show", str(tmp_path / "out.jsonl"), "--failed"])
    assert "invalid_json_line" in failed.stdout
    assert "question one" not in failed.stdout


def test_the_examples_are_rows_that_run(tmp_path: Path, model: Path) -> None:
    questions = Path(__file__).parents[3] / "examples" / "questions.jsonl"
    output = tmp_path / "out.jsonl"
    result = CliRunner().invoke(
        main, ["batch", str(questions), "-o", str(output), "--model", str(model)]
    )
    assert result.exit_code == 0, result.stderr
    assert len(_read(output)) == len(questions.read_text(encoding="utf-8").splitlines())
    assert "note:" not in result.stderr


def test_rows_get_the_models_sampling_where_they_do_not_say(model: Path) -> None:
    (model / "generation_config.json").write_text('{"temperature": 0.25, "top_p": 0.5}')
    config = ModelConfig(model=str(model))
    preparer = client_engine.ClientPreparer(Tokenizer.load(model), sampling_defaults(config))
    prepared = preparer.prepare("/v1/completions", {"prompt": "a", "top_p": 0.75})
    params = prepared.payload.inputs[0].params
    assert (params.temperature, params.top_p) == (0.25, 0.75)


def test_of_a_row_s_prompts_none_runs_on_when_one_has_failed() -> None:
    aborted: list[str] = []

    async def refused() -> Any:
        raise RequestError("too long")

    async def long() -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            aborted.append("long")

    async def scenario() -> None:
        with pytest.raises(RequestError):
            await client_engine._together([long(), refused()])
        await asyncio.sleep(0)
        assert aborted == ["long"]

    asyncio.run(scenario())
