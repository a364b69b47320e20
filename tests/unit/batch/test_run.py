"""A whole run, with an engine that answers in this process."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import os
import random
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from hpcserve.config.batch import RowDefaults
from hpcserve.errors import ConfigError, InputError, OutputError

Run = Callable[..., Any]


def _chat(number: int, text: str, **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {
        "custom_id": f"id-{number}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"messages": messages, **body},
    }


def _write(path: Path, rows: list[Any]) -> Path:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


#: What is wrong with a row -> the row, given its number; and what its error line says.
BAD: dict[str, Callable[[int], Any]] = {
    "invalid_json_line": lambda n: b'{"custom_id": "x',
    "invalid_utf8": lambda n: b'{"prompt": "\xff\xfe"}',
    "unknown_row": lambda n: {"custom_id": f"id-{n}", "text": "hello"},
    "ambiguous_row": lambda n: {"prompt": "a", "messages": []},
    "missing_body": lambda n: {"custom_id": f"id-{n}", "url": "/v1/completions"},
    "invalid_body": lambda n: {"custom_id": f"id-{n}", "body": "text"},
    "invalid_url": lambda n: {**_chat(n, "x"), "url": "/v1/nonsense"},
    "invalid_method": lambda n: {**_chat(n, "x"), "method": "GET"},
    "invalid_custom_id": lambda n: {**_chat(n, "x"), "custom_id": ["x"]},
    "unsupported_url": lambda n: {**_chat(n, "x"), "url": "/v1/embeddings"},
    "context_length_exceeded": lambda n: _chat(n, "word " * 200),
    "invalid_request": lambda n: _chat(n, "some poison here"),
}


def test_2000_mixed_lines_give_one_line_each_in_order(
    tmp_path: Path, run: Run, engine: Any
) -> None:
    draw = random.Random(0)
    rows: list[Any] = [_chat(0, "the first")]
    wanted: list[str | None] = [None]
    for number in range(1, 2000):
        kind = draw.choice([*BAD, *[None] * 20])
        text = " ".join(f"w{k}" for k in range(draw.randrange(1, 40)))
        rows.append(_chat(number, text) if kind is None else BAD[kind](number))
        wanted.append(kind)
    source = _write(tmp_path / "in.jsonl", rows)
    report = run(source, tmp_path / "out.jsonl")

    lines = _read(tmp_path / "out.jsonl")
    assert len(lines) == 2000
    assert len({line["id"] for line in lines}) == 2000
    for number, (line, kind) in enumerate(zip(lines, wanted, strict=True)):
        if kind is None:
            assert line["custom_id"] == f"id-{number}"
            assert line["error"] is None
            asked = rows[number]["body"]["messages"][0]["content"].split()
            answer = line["response"]["body"]["choices"][0]["message"]["content"]
            assert answer.split() == asked[::-1]
        else:
            assert line["error"]["code"] == kind
            assert line["error"]["line"] == number + 1
    assert report.num_ok == wanted.count(None)
    assert report.num_failed == 2000 - wanted.count(None)
    assert set(report.errors) == {kind for kind in wanted if kind}
    assert engine.max_running > 4
    assert sorted(one.name for one in tmp_path.glob("*.jsonl")) == ["in.jsonl", "out.jsonl"]


@pytest.mark.parametrize("kind", BAD)
def test_each_kind_of_bad_row(tmp_path: Path, run: Run, kind: str) -> None:
    source = _write(tmp_path / "in.jsonl", [_chat(0, "good"), BAD[kind](1), _chat(2, "good")])
    report = run(source, tmp_path / "out.jsonl")
    lines = _read(tmp_path / "out.jsonl")
    assert [line["error"] is None for line in lines] == [True, False, True]
    assert report.errors == {kind: 1}
    assert report.first_failure is not None
    assert report.first_failure[0] == 2


def test_a_refused_request_has_openai_s_error_body(tmp_path: Path, run: Run) -> None:
    source = _write(tmp_path / "in.jsonl", [BAD["context_length_exceeded"](1)])
    run(source, tmp_path / "out.jsonl")
    (line,) = _read(tmp_path / "out.jsonl")
    assert line["id"].startswith("batch_req_")
    assert line["response"]["status_code"] == 400
    error = line["response"]["body"]["error"]
    assert error["code"] == "context_length_exceeded"
    assert "200 tokens" in error["message"]
    assert "100 tokens" in error["message"]


def test_a_file_of_embeddings_alone_is_refused_before_a_model_is_loaded(
    tmp_path: Path, run: Run, engine: Any
) -> None:
    rows = [{**_chat(n, "x"), "url": "/v1/embeddings"} for n in range(30)]
    source = _write(tmp_path / "in.jsonl", rows)
    with pytest.raises(InputError, match=r"/v1/embeddings: .* need a server of an embedding model"):
        run(source, tmp_path / "out.jsonl")
    assert engine.num_started == 0
    # Among others they are failed rows, and the others are answered.
    _write(source, [*rows, _chat(99, "text")])
    result = run(source, tmp_path / "out.jsonl")
    assert (result.num_ok, result.errors) == (1, {"unsupported_url": 30})


@pytest.mark.parametrize("column", ["url", "custom_id"])
def test_ids_may_be_in_any_column(tmp_path: Path, run: Run, column: str) -> None:
    source = _write(tmp_path / "in.jsonl", [{column: f"x{n}", "prompt": "a"} for n in range(3)])
    run(source, tmp_path / "out.jsonl", id_column=column, prompt_column="prompt")
    assert [line["custom_id"] for line in _read(tmp_path / "out.jsonl")] == ["x0", "x1", "x2"]


def test_hostile_lines(tmp_path: Path, run: Run) -> None:
    """BOM, CRLF, blank lines, U+2028 inside text, NULs, deep nesting, no newline at the end."""
    lines = [
        b"\xef\xbb\xbf" + b'{"custom_id": "bom", "prompt": "a b"}\r',
        b"",
        b"   \r",
        '{"custom_id": "u2028", "prompt": "a\u2028b"}'.encode(),
        b"\x00\x00\x00\x00",
        b"[" * 100_000,
        b"17",
        b'{"custom_id": 7, "prompt": "number"}',
        b'{"id": "other", "prompt": "x", "label": 1}',
    ]
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join(lines))
    report = run(path, tmp_path / "out.jsonl")
    found = _read(tmp_path / "out.jsonl")
    assert [line["custom_id"] for line in found] == ["bom", "u2028", None, None, None, 7, "other"]
    assert [line["error"]["line"] for line in found if line["error"]] == [5, 6, 7]
    assert report.num_blank == 2
    assert report.unused == {"label": 1}


def test_rows_keep_their_parameters_and_take_the_defaults(
    tmp_path: Path, run: Run, engine: Any
) -> None:
    rows = [
        {"prompt": "a", "temperature": 0.5},
        {"prompt": "b", "stream": True, "seed": 5},
        {"messages": [{"role": "user", "content": "c"}], "max_completion_tokens": 3},
    ]
    source = _write(tmp_path / "in.jsonl", rows)
    defaults = RowDefaults(max_tokens=9, temperature=0.0, sampling=("top_p=0.5", "stop=x"))
    run(source, tmp_path / "out.jsonl", defaults)
    first, second, third = engine.bodies
    assert (first["temperature"], second["temperature"]) == (0.5, 0.0)
    assert (first["max_tokens"], first["top_p"], first["stop"]) == (9, 0.5, "x")
    assert "stream" not in second
    assert second["seed"] == 5
    assert "max_tokens" not in third


def test_seeds_belong_to_the_row_and_the_run(tmp_path: Path, run: Run, engine: Any) -> None:
    source = _write(tmp_path / "in.jsonl", [{"prompt": "a"}] * 3)
    for seed in (0, 0, 1):
        run(source, tmp_path / "out.jsonl", seed=seed, fresh=True)
    seeds = [body["seed"] for body in engine.bodies]
    assert seeds[:3] == seeds[3:6]
    assert len(set(seeds)) == 6


def test_a_prompt_may_be_asked_as_a_message(tmp_path: Path, run: Run, engine: Any) -> None:
    source = _write(tmp_path / "in.jsonl", [{"prompt": "a"}])
    run(source, tmp_path / "out.jsonl", apply_chat_template=True)
    assert engine.bodies[0]["messages"] == [{"role": "user", "content": "a"}]


@pytest.mark.parametrize(
    ("pair", "message"), [("top_q=1", "did you mean 'top_p'"), ("top_p", "expected KEY=VALUE")]
)
def test_a_wrong_default_is_refused(tmp_path: Path, run: Run, pair: str, message: str) -> None:
    source = _write(tmp_path / "in.jsonl", [{"prompt": "a"}])
    with pytest.raises(ConfigError, match=message):
        run(source, tmp_path / "out.jsonl", RowDefaults(sampling=(pair,)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]


@pytest.mark.parametrize("ending", [".jsonl.gz", ".jsonl.zst"])
def test_compressed_files(tmp_path: Path, run: Run, ending: str) -> None:
    text = b'{"prompt": "a b"}\n' * 300
    packed = gzip.compress(text) if ending.endswith("gz") else zstandard.compress(text)
    source, output = tmp_path / f"in{ending}", tmp_path / f"out{ending}"
    source.write_bytes(packed)
    run(source, output)
    data = output.read_bytes()
    if ending.endswith("gz"):
        plain = gzip.decompress(data)
    else:
        plain = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    assert plain.count(b"\n") == 300


def test_a_damaged_archive_is_refused_before_anything_runs(
    tmp_path: Path, run: Run, engine: Any
) -> None:
    source = tmp_path / "in.jsonl.gz"
    data = gzip.compress(b"".join(b'{"prompt": "a %d"}\n' % n for n in range(40_000)))
    source.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"cannot read the input .*in.jsonl.gz"):
        run(source, tmp_path / "out.jsonl")
    assert [one.name for one in tmp_path.iterdir()] == ["in.jsonl.gz"]
    assert engine.num_started == 0


def _refusals(folder: Path) -> dict[str, tuple[str, str, type[Exception]]]:
    good = str(_write(folder / "in.jsonl", [{"prompt": "a"}]))
    (folder / "empty.jsonl").touch()
    (folder / "old.jsonl").write_text("precious")
    (folder / "dir.jsonl").mkdir()
    (folder / "rows.xlsx").write_text("x")
    (folder / "none.d").mkdir()
    new = str(folder / "new.jsonl")
    return {
        "there is no input file": (f"{folder}/none.jsonl", new, InputError),
        "is empty": (f"{folder}/empty.jsonl", new, InputError),
        "has no input files": (f"{folder}/none.d", new, InputError),
        "no file matches": (f"{folder}/*.nothing", new, InputError),
        "cannot write .* known endings": (good, f"{folder}/out.xlsx", OutputError),
        "cannot tell the format of": (f"{folder}/rows.xlsx", new, InputError),
        "there is no folder": (good, f"{folder}/none/out.jsonl", OutputError),
        "pass --overwrite to replace it": (good, f"{folder}/old.jsonl", OutputError),
        "the output .* is a folder": (good, f"{folder}/dir.jsonl", OutputError),
        "are the same file": (good, good, OutputError),
    }


@pytest.mark.parametrize("case", range(10))
def test_what_cannot_work_is_refused_before_the_engine_starts(
    tmp_path: Path, run: Run, engine: Any, case: int
) -> None:
    message, (source, output, error) = list(_refusals(tmp_path).items())[case]

    with pytest.raises(error, match=message):
        run(source, output)
    assert engine.num_started == 0
    assert (tmp_path / "old.jsonl").read_text() == "precious"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_writable(tmp_path: Path, run: Run) -> None:
    source = _write(tmp_path / "in.jsonl", [{"prompt": "a"}])
    (tmp_path / "ro").mkdir(mode=0o500)
    with pytest.raises(OutputError, match="not writable"):
        run(source, tmp_path / "ro" / "out.jsonl")


def test_an_input_of_blank_lines_is_an_error(tmp_path: Path, run: Run) -> None:
    (tmp_path / "in.jsonl").write_text("\n \n")
    with pytest.raises(InputError, match="has no rows"):
        run(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_memory_does_not_grow_with_the_file(tmp_path: Path, run: Run, engine: Any) -> None:
    def rows(number: int) -> Path:
        path = tmp_path / f"{number}.jsonl"
        with path.open("w") as stream:
            for n in range(number):
                stream.write(f'{{"custom_id": "a rather long id {n}", "prompt": "a {n} b"}}\n')
        return path

    def peak(number: int) -> int:
        source = rows(number)
        tracemalloc.start()
        run(source, tmp_path / f"{number}.out.jsonl", shard_rows=100)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    class Forgetful:
        def append(self, body: Any) -> None:
            pass

    engine.bodies = engine.answered = Forgetful()
    small = peak(1_000)
    # 8 bytes a row for the names and 12 for the report are allowed, and what waits for a rare
    # collection; a list of rows, of more than a kilobyte each, is not.
    assert peak(3_000) < small + 2_000 * 500


def test_a_long_row_at_the_head_bounds_what_waits(tmp_path: Path, run: Run) -> None:
    """The window's rows, not the file's, are in flight at a time."""
    source = _write(tmp_path / "in.jsonl", [{"prompt": "a " * 60}] + [{"prompt": "b"}] * 500)
    report = run(source, tmp_path / "out.jsonl", max_rows_in_flight=4)
    assert report.num_ok == 501


def test_rows_in_flight_are_bounded(tmp_path: Path, run: Run, engine: Any) -> None:
    source = _write(tmp_path / "in.jsonl", [{"prompt": "b"}] * 500)
    run(source, tmp_path / "out.jsonl", max_rows_in_flight=4)
    assert engine.max_running == 4


def test_a_queue_that_is_full_is_waited_for(tmp_path: Path, run: Run, engine: Any) -> None:
    from hpcserve.errors import QueueFullError

    answer, refused = engine.answer, []

    async def often_full(request: Any) -> Any:
        if len(refused) < 3:
            refused.append(request)
            raise QueueFullError("4 requests wait already")
        return await answer(request)

    engine.answer = often_full
    source = _write(tmp_path / "in.jsonl", [{"prompt": "a"}] * 5)
    assert run(source, tmp_path / "out.jsonl").num_ok == 5
    assert len(refused) == 3


def test_progress_and_summary_in_a_log(tmp_path: Path, run: Run, engine: Any) -> None:
    rows = [_chat(n, "a b", model="gpt-4") for n in range(100)] + [b"no json"]
    source = _write(tmp_path / "in.jsonl", rows)
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


def test_on_a_terminal_there_is_a_bar(tmp_path: Path, run: Run, engine: Any) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    engine.delay_s = 0.05
    source = _write(tmp_path / "in.jsonl", [_chat(n, "a b") for n in range(100)])
    screen = Terminal()
    run(source, tmp_path / "out.jsonl", stream=screen, max_rows_in_flight=8)
    assert "rows (" in screen.getvalue()
    assert "batch: " not in screen.getvalue()


def test_a_slow_pipe_is_read_as_it_comes(tmp_path: Path, run: Run) -> None:
    """An input that is no file: rows arrive while the run goes on."""
    pipe = tmp_path / "in.jsonl"
    os.mkfifo(pipe)

    def feed() -> None:
        with pipe.open("wb", buffering=0) as stream:
            for n in range(3):
                stream.write(b'{"prompt": "a %d"}\n' % n)
                time.sleep(0.02)

    feeder = threading.Thread(target=feed)
    feeder.start()
    assert run(pipe, tmp_path / "out.jsonl").num_ok == 3
    feeder.join()


def test_the_same_run_twice_gives_the_same_bytes(tmp_path: Path, run: Run) -> None:
    rows = [_chat(n, f"a b {n}") for n in range(200)] + [b"bad"]
    source = _write(tmp_path / "in.jsonl", rows)
    run(source, tmp_path / "one.jsonl")
    run(source, tmp_path / "two.jsonl")
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
