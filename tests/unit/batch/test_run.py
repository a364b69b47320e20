"""A whole run, with an engine that answers in this process."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpcserve.errors import InputError

Run = Callable[..., Any]


def _chat(number: int, text: str, **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {
        "custom_id": f"id-{number}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"messages": messages, **body},
    }


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
    tmp_path: Path,
    run: Run,
    engine: Any,
    write_lines: Callable[..., Path],
    read_lines: Callable[..., Any],
) -> None:
    draw = random.Random(0)
    rows: list[Any] = [_chat(0, "the first")]
    wanted: list[str | None] = [None]
    for number in range(1, 2000):
        kind = draw.choice([*BAD, *[None] * 20])
        text = " ".join(f"w{k}" for k in range(draw.randrange(1, 40)))
        rows.append(_chat(number, text) if kind is None else BAD[kind](number))
        wanted.append(kind)
    source = write_lines(tmp_path / "in.jsonl", rows)
    report = run(source, tmp_path / "out.jsonl")

    lines = read_lines(tmp_path / "out.jsonl")
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
def test_each_kind_of_bad_row(
    tmp_path: Path,
    run: Run,
    kind: str,
    write_lines: Callable[..., Path],
    read_lines: Callable[..., Any],
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [_chat(0, "good"), BAD[kind](1), _chat(2, "good")])
    report = run(source, tmp_path / "out.jsonl")
    lines = read_lines(tmp_path / "out.jsonl")
    assert [line["error"] is None for line in lines] == [True, False, True]
    assert report.errors == {kind: 1}
    assert report.first_failure is not None
    assert report.first_failure[0] == 2


def test_a_refused_request_has_openai_s_error_body(
    tmp_path: Path, run: Run, write_lines: Callable[..., Path], read_lines: Callable[..., Any]
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [BAD["context_length_exceeded"](1)])
    run(source, tmp_path / "out.jsonl")
    (line,) = read_lines(tmp_path / "out.jsonl")
    assert line["id"].startswith("batch_req_")
    assert line["response"]["status_code"] == 400
    error = line["response"]["body"]["error"]
    assert error["code"] == "context_length_exceeded"
    assert "200 tokens" in error["message"]
    assert "100 tokens" in error["message"]


def test_a_file_of_embeddings_alone_is_refused_before_a_model_is_loaded(
    tmp_path: Path, run: Run, engine: Any, write_lines: Callable[..., Path]
) -> None:
    rows = [{**_chat(n, "x"), "url": "/v1/embeddings"} for n in range(30)]
    source = write_lines(tmp_path / "in.jsonl", rows)
    with pytest.raises(InputError, match=r"/v1/embeddings: .* need a server of an embedding model"):
        run(source, tmp_path / "out.jsonl")
    assert engine.num_started == 0
    # Among others they are failed rows, and the others are answered.
    write_lines(source, [*rows, _chat(99, "text")])
    result = run(source, tmp_path / "out.jsonl")
    assert (result.num_ok, result.errors) == (1, {"unsupported_url": 30})


@pytest.mark.parametrize("column", ["url", "custom_id"])
def test_ids_may_be_in_any_column(
    tmp_path: Path,
    run: Run,
    column: str,
    write_lines: Callable[..., Path],
    read_lines: Callable[..., Any],
) -> None:
    source = write_lines(
        tmp_path / "in.jsonl", [{column: f"x{n}", "prompt": "a"} for n in range(3)]
    )
    run(source, tmp_path / "out.jsonl", id_column=column, prompt_column="prompt")
    assert [line["custom_id"] for line in read_lines(tmp_path / "out.jsonl")] == ["x0", "x1", "x2"]


def test_hostile_lines(tmp_path: Path, run: Run, read_lines: Callable[..., Any]) -> None:
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
    found = read_lines(tmp_path / "out.jsonl")
    assert [line["custom_id"] for line in found] == ["bom", "u2028", None, None, None, 7, "other"]
    assert [line["error"]["line"] for line in found if line["error"]] == [5, 6, 7]
    assert report.num_blank == 2
    assert report.unused == {"label": 1}


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


def test_a_long_row_at_the_head_bounds_what_waits(
    tmp_path: Path, run: Run, write_lines: Callable[..., Path]
) -> None:
    """The window's rows, not the file's, are in flight at a time."""
    source = write_lines(tmp_path / "in.jsonl", [{"prompt": "a " * 60}] + [{"prompt": "b"}] * 500)
    report = run(source, tmp_path / "out.jsonl", max_rows_in_flight=4)
    assert report.num_ok == 501


def test_rows_in_flight_are_bounded(
    tmp_path: Path, run: Run, engine: Any, write_lines: Callable[..., Path]
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"prompt": "b"}] * 500)
    run(source, tmp_path / "out.jsonl", max_rows_in_flight=4)
    assert engine.max_running == 4


def test_a_queue_that_is_full_is_waited_for(
    tmp_path: Path, run: Run, engine: Any, write_lines: Callable[..., Path]
) -> None:
    from hpcserve.errors import QueueFullError

    answer, refused = engine.answer, []

    async def often_full(request: Any) -> Any:
        if len(refused) < 3:
            refused.append(request)
            raise QueueFullError("4 requests wait already")
        return await answer(request)

    engine.answer = often_full
    source = write_lines(tmp_path / "in.jsonl", [{"prompt": "a"}] * 5)
    assert run(source, tmp_path / "out.jsonl").num_ok == 5
    assert len(refused) == 3


def test_the_same_run_twice_gives_the_same_bytes(
    tmp_path: Path, run: Run, write_lines: Callable[..., Path]
) -> None:
    rows = [_chat(n, f"a b {n}") for n in range(200)] + [b"bad"]
    source = write_lines(tmp_path / "in.jsonl", rows)
    run(source, tmp_path / "one.jsonl")
    run(source, tmp_path / "two.jsonl")
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
