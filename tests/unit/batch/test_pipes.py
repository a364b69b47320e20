"""Inputs that can be read but once: stdin and pipes."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpcserve.batch.run_dir import RunDir
from hpcserve.batch.verify import verify_run
from hpcserve.errors import InputError

Run = Callable[..., Any]


class _Stdin(io.BytesIO):
    def __init__(self, data: bytes = b"", *, is_terminal: bool = False) -> None:
        super().__init__(data)
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.mark.parametrize("is_terminal", [False, True])
def test_rows_of_stdin_need_not_be_given_twice(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    """`batch resume` has no pipe before it."""
    rows = b'{"prompt": "a"}\n{"prompt": "b"}\n'
    monkeypatch.setattr("hpcserve.batch.inputs._stdin", lambda: _Stdin(rows))
    output = tmp_path / "out.jsonl"
    run("-", output)
    wanted = output.read_bytes()
    run_dir = RunDir.of_output(output)
    run_dir.shard(0).unlink()
    output.unlink()
    later = _Stdin(b"typed" if is_terminal else b"", is_terminal=is_terminal)
    monkeypatch.setattr("hpcserve.batch.inputs._stdin", lambda: later)
    assert run("-", output).num_ok == 2
    assert output.read_bytes() == wanted
    assert verify_run(run_dir).problems == []
    # Other rows are another run, still.
    monkeypatch.setattr("hpcserve.batch.inputs._stdin", lambda: _Stdin(b'{"prompt": "c"}\n'))
    with pytest.raises(InputError, match="begun with other content"):
        run("-", output)


def test_stdin_that_says_nothing_or_is_asked_twice(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpcserve.batch.inputs._stdin", _Stdin)
    with pytest.raises(InputError, match="stdin is empty"):
        run("-", tmp_path / "out.jsonl")
    with pytest.raises(InputError, match="is given twice"):
        run(["-", "-"], tmp_path / "out.jsonl")
    assert not list(tmp_path.rglob("*.tmp"))


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
