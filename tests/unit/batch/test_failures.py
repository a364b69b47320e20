"""Rows that fail, and rows and engines that die of each other."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpcserve.batch import status, verbs
from hpcserve.batch.run_dir import RunDir
from hpcserve.batch.verify import verify_run
from hpcserve.errors import (
    EngineDeadError,
    IncompleteRunError,
    RequestError,
    RowsFailedError,
)

Run = Callable[..., Any]


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


class _Busy(RequestError):
    http_status = 503


def test_what_may_pass_is_tried_again(
    tmp_path: Path, run: Run, engine: Any, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpcserve.batch.policy._FIRST_WAIT_S", 0.001)
    answer, tries = engine.answer, Counter()

    async def busy(request: Any) -> Any:
        tries[request.payload[1][1]] += 1
        if tries[request.payload[1][1]] <= 2:
            raise _Busy("try later")
        return await answer(request)

    engine.answer = busy
    assert run(source, tmp_path / "out.jsonl").num_ok == 500
    result = run(source, tmp_path / "two.jsonl", retries=0)
    assert result.num_ok == 500
    tries.clear()
    assert run(source, tmp_path / "three.jsonl", retries=1).errors == {"invalid_request": 500}


def test_errors_in_a_file_beside(tmp_path: Path, run: Run) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "a"}\nbad\n{"prompt": "b"}\n')
    result = run(source, tmp_path / "out.jsonl", errors="file")
    assert (result.num_ok, result.num_failed) == (2, 1)
    assert len(_read(tmp_path / "out.jsonl")) == 2
    (error,) = _read(tmp_path / "out.errors.jsonl")
    assert error["error"]["line"] == 2
    assert verify_run(RunDir.of_output(tmp_path / "out.jsonl")).problems == []


def test_errors_fail_ends_the_run_and_keeps_the_rest(tmp_path: Path, run: Run, engine: Any) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "a"}\n{"prompt": "some poison here"}\n')
    with pytest.raises(RowsFailedError, match=r"line 2 failed .*--errors fail") as raised:
        run(source, tmp_path / "out.jsonl", errors="fail")
    assert raised.value.exit_code == 1
    assert not (tmp_path / "out.jsonl").exists()


def test_too_many_errors_end_the_run(tmp_path: Path, run: Run, engine: Any) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "a"}\nbad\n' * 300)
    with pytest.raises(RowsFailedError, match=r"more than --max-error-rate 0\.2"):
        run(source, tmp_path / "out.jsonl", max_error_rate=0.2)
    assert run(source, tmp_path / "out.jsonl", max_error_rate=0.6).num_failed == 300


def test_a_row_that_takes_too_long_is_given_up(
    tmp_path: Path, run: Run, engine: Any, clock: Any, write_rows: Callable[..., Path]
) -> None:
    source = write_rows(20)
    answer = engine.answer

    async def slow(request: Any) -> Any:
        if request.payload[1][1] == "7":
            while len(engine.answered) < 19:
                await asyncio.sleep(0)
            clock.now_s += 31
            await asyncio.Event().wait()
        return await answer(request)

    engine.answer = slow
    result = run(source, tmp_path / "out.jsonl", row_timeout_s=30.0)
    assert (result.num_ok, result.errors) == (19, {"row_timeout": 1})


def test_retry_errors_answers_only_what_failed(
    tmp_path: Path, run: Run, engine: Any, write_rows: Callable[..., Path]
) -> None:
    source = write_rows(300)
    answer = engine.answer

    async def picky(request: Any) -> Any:
        if int(request.payload[1][1]) % 50 == 3:
            raise RequestError("not today")
        return await answer(request)

    engine.answer = picky
    output = tmp_path / "out.jsonl"
    assert run(source, output, shard_rows=100).num_failed == 6
    engine.answer = answer
    engine.answered.clear()
    run_dir = RunDir.of_output(output)
    assert verbs.forget_failures(run_dir) == 6
    assert status.of_run(run_dir)["num_finished"] == 294
    assert run(source, output, shard_rows=100).num_failed == 0
    assert len(engine.answered) == 6
    assert verify_run(run_dir).problems == []


# ---------------------------------------------------------------- engines that die


@pytest.mark.parametrize("poison", ["77", "0", "499"])
def test_a_row_that_kills_the_engine_is_found(
    tmp_path: Path, run: Run, engine: Any, source: Path, poison: str
) -> None:
    engine.poison = poison
    result = run(source, tmp_path / "out.jsonl", max_rows_in_flight=64)
    assert (result.num_ok, result.num_quarantined) == (499, 1)
    assert result.errors == {"engine_killed": 1}
    (line,) = [line for line in _read(tmp_path / "out.jsonl") if line["error"]]
    assert line["custom_id"] == f"id-{poison}"
    # One death begins the search; 64 rows are halved 6 times.
    assert engine.num_started <= 1 + 1 + 6 + 1


def test_two_rows_that_kill_the_engine(tmp_path: Path, run: Run, engine: Any, source: Path) -> None:
    answer = engine.answer

    async def deadly(request: Any) -> Any:
        if request.payload[1][1] in ("20", "21"):
            raise EngineDeadError("the engine is gone (core): again")
        return await answer(request)

    engine.answer = deadly
    result = run(source, tmp_path / "out.jsonl")
    assert (result.num_ok, result.num_quarantined) == (498, 2)


def test_an_engine_that_dies_once_quarantines_nobody(
    tmp_path: Path, run: Run, engine: Any, source: Path
) -> None:
    answer = engine.answer

    async def once(request: Any) -> Any:
        if len(engine.answered) >= 100 and engine.num_started == 1:
            raise EngineDeadError("the engine is gone (core): out of memory")
        return await answer(request)

    engine.answer = once
    result = run(source, tmp_path / "out.jsonl")
    assert (result.num_ok, result.num_engine_deaths) == (500, 1)


@pytest.mark.parametrize("every", [7, 40])
def test_an_engine_that_dies_again_and_again_loses_no_row(
    tmp_path: Path, run: Run, engine: Any, source: Path, every: int
) -> None:
    """Also rows that were just being read or prepared when it died."""
    answer, prepare, deaths = engine.answer, engine.prepare, []

    async def mortal(request: Any) -> Any:
        if len(engine.answered) >= every * (len(deaths) + 1) and len(deaths) < 12:
            deaths.append(request)
            raise EngineDeadError("the engine is gone (core): again")
        return await answer(request)

    def slow(url: str, body: Any) -> Any:
        time.sleep(0.0005)
        return prepare(url, body)

    engine.answer, engine.prepare = mortal, slow
    result = run(source, tmp_path / "out.jsonl", shard_rows=16, max_rows_in_flight=8)
    # One that was alone in the engine at two deaths is taken for guilty; none is forgotten.
    assert result.num_ok + result.num_quarantined == 500
    assert len(deaths) == 12
    assert max(Counter(engine.answered).values()) == 1
    assert verify_run(RunDir.of_output(tmp_path / "out.jsonl")).problems == []


def test_an_engine_that_dies_of_every_row_ends_the_run(
    tmp_path: Path, run: Run, engine: Any, source: Path
) -> None:
    async def broken(request: Any) -> Any:
        raise EngineDeadError("the engine is gone (core): no GPU")

    engine.answer = broken
    with pytest.raises(IncompleteRunError, match="no GPU"):
        run(source, tmp_path / "out.jsonl", max_rows_in_flight=4)
    assert engine.num_started < 30


def test_an_engine_that_hangs_is_replaced(
    tmp_path: Path, run: Run, engine: Any, source: Path, clock: Any
) -> None:
    answer = engine.answer

    async def hangs(request: Any) -> Any:
        while engine.num_started == 1 and len(engine.answered) > 50:
            clock.now_s += 1
            await asyncio.sleep(0.01)
        return await answer(request)

    engine.answer = hangs
    result = run(source, tmp_path / "out.jsonl", stall_timeout_s=600.0)
    assert (result.num_ok, result.num_engine_deaths) == (500, 1)
