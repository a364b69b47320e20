"""Output that is seen before the run is over: pipes, and files of unordered runs."""

from __future__ import annotations

import asyncio
import io
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpcserve.batch.merge import growing_path
from hpcserve.batch.row_stream import RowStream
from hpcserve.batch.run_dir import RunDir
from hpcserve.batch.verify import verify_run
from hpcserve.batch.window import Window
from hpcserve.errors import ConfigError, IncompleteRunError, OutputError

Run = Callable[..., Any]


def _write(path: Path, num_rows: int) -> Path:
    rows = [{"custom_id": f"id-{n}", "prompt": f"a {n} b"} for n in range(num_rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _ids(lines: list[bytes]) -> list[int]:
    return [int(json.loads(line)["custom_id"].removeprefix("id-")) for line in lines]


@pytest.fixture
def pipe(tmp_path: Path) -> tuple[Path, list[bytes], threading.Thread]:
    """A named pipe, and the lines that somebody has read of it so far."""
    path, lines = tmp_path / "pipe", []
    os.mkfifo(path)

    def read() -> None:
        with path.open("rb") as stream:
            lines.extend(stream)

    reader = threading.Thread(target=read)
    reader.start()
    return path, lines, reader


@pytest.mark.parametrize("unordered", [False, True])
def test_rows_reach_a_pipe_while_the_run_goes_on(
    tmp_path: Path, run: Run, engine: Any, pipe: Any, unordered: bool
) -> None:
    path, lines, reader = pipe
    answer, seen = engine.answer, []

    async def answered(request: Any) -> Any:
        number = int(request.payload[1][1])
        if number == 400:  # all before it are out by now, though the run is not over
            until = time.monotonic() + 60
            while len(lines) < (300 if unordered else 350) and time.monotonic() < until:
                await asyncio.sleep(0.01)
            seen.append(len(lines))
        if number == 50:
            await asyncio.sleep(0.2)
        return await answer(request)

    engine.answer = answered
    run(_write(tmp_path / "in.jsonl", 500), path, unordered=unordered, max_rows_in_flight=16)
    reader.join()
    assert seen[0] >= (300 if unordered else 350)
    found = _ids(lines)
    assert sorted(found) == list(range(500))
    assert (found == sorted(found)) is not unordered


def test_failed_rows_are_streamed_too(tmp_path: Path, run: Run, pipe: Any) -> None:
    path, lines, reader = pipe
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "a"}\nnonsense\n{"prompt": "poison"}\n{"prompt": "b"}\n')
    assert run(source, path).num_failed == 2
    reader.join()
    errors = [json.loads(line)["error"] for line in lines]
    assert [error and error["line"] for error in errors] == [None, 2, 3, None]


def test_a_file_beside_a_pipe_is_refused(tmp_path: Path, run: Run) -> None:
    with pytest.raises(ConfigError, match="beside stdout"):
        run(_write(tmp_path / "in.jsonl", 3), "-", errors="file")


class _Gone(io.RawIOBase):
    """A reader that has gone away, or a disk that is full."""

    def __init__(self, error: type[OSError] | OSError) -> None:
        self._failure = error
        self.was_asked = threading.Event()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.was_asked.set()
        raise self._failure


@pytest.mark.parametrize(
    ("error", "raised"),
    [(BrokenPipeError(), BrokenPipeError), (OSError(28, "No space left on device"), OutputError)],
)
def test_a_reader_that_goes_away_ends_the_run(
    tmp_path: Path,
    run: Run,
    engine: Any,
    monkeypatch: pytest.MonkeyPatch,
    error: OSError,
    raised: Any,
) -> None:
    class Stdout:
        buffer = _Gone(error)

    answer = engine.answer

    async def answered(request: Any) -> Any:
        while len(engine.answered) > 500 and not Stdout.buffer.was_asked.is_set():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.005)
        return await answer(request)

    engine.answer = answered

    monkeypatch.setattr("sys.stdout", Stdout())
    monkeypatch.setattr("sys.stdout.isatty", lambda: False, raising=False)
    with pytest.raises(raised):
        run(_write(tmp_path / "in.jsonl", 5000), "-")
    assert len(engine.answered) < 5000


def test_a_reader_that_sleeps_holds_the_run_back_and_memory_stays_flat() -> None:
    """Rows wait for the reader; when it wakes up, they go on."""
    awake = threading.Event()

    class Sleeper(io.BytesIO):
        def write(self, data: Any) -> int:
            awake.wait(60)
            return super().write(data)

    async def scenario() -> bytes:
        sink = Sleeper()
        stream = RowStream(sink, ordered=True, max_bytes=1000)
        window = Window(min_rows=4, max_rows=4, max_tokens=100, stream=stream)
        for index in range(20):
            window.take(1)
            stream.add(index, b"x" * 100)
            window.leave(1)
            if not window.fits(1):
                break
        assert index < 15
        waiting = asyncio.create_task(window.enter(1))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        awake.set()
        await asyncio.wait_for(waiting, 60)
        stream.close()
        return sink.getvalue()

    assert len(asyncio.run(scenario()).split()) >= 11


def test_rows_that_wait_for_a_slow_one_bound_the_memory_and_never_lock() -> None:
    async def scenario() -> None:
        sink = io.BytesIO()
        stream = RowStream(sink, ordered=True, max_bytes=1000)
        for index in range(1, 12):
            stream.add(index, b"x" * 100)
        assert not stream.admits(is_idle=False)
        assert stream.admits(is_idle=True)  # else the row that they wait for could not start
        stream.add(0, b"first")
        stream.close()
        assert stream.admits(is_idle=False)
        assert sink.getvalue().startswith(b"first\n")
        assert sink.getvalue().count(b"\n") == 12

    asyncio.run(scenario())


# ---------------------------------------------------------------- files of unordered runs


def test_an_unordered_file_grows_while_the_run_goes_on(
    tmp_path: Path, run: Run, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpcserve.batch.finish._POLL_S", 0.01)
    monkeypatch.setattr("hpcserve.batch.writers.jsonl._BUFFER_BYTES", 256)
    output = tmp_path / "out.jsonl"
    answer, shown = engine.answer, 0

    async def answered(request: Any) -> Any:
        nonlocal shown
        if request.payload[1][1] == "10":  # its shard waits until others are in the file
            until = time.monotonic() + 60
            while shown < 100 and time.monotonic() < until:
                await asyncio.sleep(0.01)
                if growing_path(output).exists():
                    shown = growing_path(output).read_bytes().count(b"\n")
            assert not output.exists()
        return await answer(request)

    engine.answer = answered
    source = _write(tmp_path / "in.jsonl", 500)
    result = run(source, output, unordered=True, shard_rows=20)
    assert shown >= 100
    assert result.num_ok == 500
    found = _ids(output.read_bytes().splitlines())
    assert sorted(found) == list(range(500))
    assert found.index(0) >= shown  # its shard came after those
    assert not growing_path(output).exists()
    assert verify_run(RunDir.of_output(output)).problems == []


def test_an_unordered_run_that_ends_early_leaves_no_part_and_goes_on(
    tmp_path: Path, run: Run, engine: Any
) -> None:
    source, output = _write(tmp_path / "in.jsonl", 500), tmp_path / "out.jsonl"
    answer = engine.answer

    async def ends(request: Any) -> Any:
        if len(engine.answered) >= 300:
            raise IncompleteRunError("told to stop")
        return await answer(request)

    engine.answer = ends
    with pytest.raises(IncompleteRunError):
        run(source, output, unordered=True, shard_rows=20, errors="file")
    assert not growing_path(output).exists()
    # As SIGKILL leaves it:
    growing_path(output).write_text("half a li")
    growing_path(tmp_path / "out.errors.jsonl").write_text("half a li")
    engine.answer = answer
    assert run(source, output, unordered=True, shard_rows=20, errors="file").num_ok == 500
    assert sorted(_ids(output.read_bytes().splitlines())) == list(range(500))
    assert sorted(one.name for one in tmp_path.iterdir()) == [
        *("in.jsonl", "out.errors.jsonl", "out.jsonl", "out.jsonl.hpcserve")
    ]
