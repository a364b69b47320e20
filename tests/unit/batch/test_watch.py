"""Who looks after a run: engines that say nothing, errors of its own, signals, and its history."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hpcserve.batch import worker_status
from hpcserve.batch.deadline import Deadline
from hpcserve.batch.durable import replace_file
from hpcserve.batch.lease import Owner
from hpcserve.batch.run_dir import RunDir
from hpcserve.batch.verbs import cancel_run
from hpcserve.batch.worker_status import WorkerStatus, runs_without_progress
from hpcserve.errors import (
    EngineDeadError,
    EngineError,
    IncompleteRunError,
    OutputError,
    RunCancelledError,
)

Run = Callable[..., Any]
PATIENCE_S = 60.0


def _write(path: Path, num_rows: int) -> Path:
    path.write_text("".join(f'{{"prompt": "a {number} b"}}\n' for number in range(num_rows)))
    return path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcserve.batch.watch._STATUS_S", 0.02)
    monkeypatch.setattr("hpcserve.batch.watch._TICK_S", 0.01)
    monkeypatch.setattr("hpcserve.batch.watch._ASK_S", 0.05)


# ---------------------------------------------------------------- engines that say nothing


@pytest.mark.parametrize("how", ["refuses", "hangs"])
@pytest.mark.usefixtures("quick")
def test_an_engine_that_is_too_busy_to_say_so_is_not_dead(
    tmp_path: Path, run: Run, engine: Any, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """One long step, or a replica that starts again: it has --stall-timeout for that."""
    asked: list[str] = []
    answer = engine.answer

    async def no_steps() -> int:
        asked.append(how)
        if how == "hangs":
            await asyncio.sleep(PATIENCE_S)
        raise EngineError("no replica is there to stats; one may be starting again")

    async def busy(request: Any) -> Any:
        until = time.monotonic() + PATIENCE_S
        while len(asked) < 3 and time.monotonic() < until:
            await asyncio.sleep(0.01)
        return await answer(request)

    engine.answer, engine.num_steps = busy, no_steps
    monkeypatch.setattr("hpcserve.batch.watch._ASK_AFTER", 1e-6)
    result = run(_write(tmp_path / "in.jsonl", 5), tmp_path / "out.jsonl")
    assert result.num_ok == 5
    assert engine.num_started == 1


@pytest.mark.usefixtures("quick")
def test_an_engine_that_hangs_for_good_is_replaced_though_it_answers_no_question(
    tmp_path: Path, run: Run, engine: Any, clock: Any
) -> None:
    answer = engine.answer

    async def never() -> Any:
        await asyncio.Event().wait()

    async def hangs(request: Any) -> Any:
        while engine.num_started == 1:
            clock.now_s += 1
            await asyncio.sleep(0.01)
        return await answer(request)

    engine.answer, engine.num_steps = hangs, never
    result = run(_write(tmp_path / "in.jsonl", 5), tmp_path / "out.jsonl")
    assert (result.num_ok, result.num_engine_deaths) == (5, 1)


# ---------------------------------------------------------------- errors of its own


@pytest.mark.usefixtures("quick")
def test_what_goes_wrong_in_looking_after_a_run_ends_it_and_is_not_silent(
    tmp_path: Path, run: Run, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without syncs and time limits nobody may take the run for a safe one."""

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a defect")

    async def never(request: Any) -> Any:
        await asyncio.Event().wait()

    engine.answer = never
    monkeypatch.setattr(worker_status.WorkerFile, "_update", _later(broken))
    with pytest.raises(RuntimeError, match="a defect"):
        run(_write(tmp_path / "in.jsonl", 5), tmp_path / "out.jsonl")


def _later(call: Callable[..., None]) -> Callable[..., None]:
    """Works twice, then fails once."""
    update, calls = worker_status.WorkerFile._update, []

    def updated(*args: Any) -> None:
        calls.append(args)
        return call(*args) if len(calls) == 3 else update(*args)

    return updated


@pytest.mark.usefixtures("quick")
def test_a_disk_that_fails_under_the_sign_to_cancel_ends_the_run_with_75(
    tmp_path: Path, run: Run, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    exists = Path.exists

    def stale(path: Path, **kwargs: Any) -> bool:
        if path.name == "cancelled" and engine.num_running:
            raise OSError(116, "Stale file handle")
        return exists(path, **kwargs)

    async def never(request: Any) -> Any:
        engine.num_running += 1
        await asyncio.Event().wait()

    engine.answer = never
    monkeypatch.setattr(Path, "exists", stale)
    with pytest.raises(IncompleteRunError, match=r"cannot read .*cancelled: Stale"):
        run(_write(tmp_path / "in.jsonl", 5), tmp_path / "out.jsonl")


def test_a_job_s_state_that_cannot_be_read_leaves_slurm_s_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(path: Path) -> bytes:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(Path, "read_bytes", stale)
    both = {"HPCSERVE_RUN_DIR": str(tmp_path), "SLURM_JOB_END_TIME": "4000000000"}
    alone = {"SLURM_JOB_END_TIME": "4000000000"}
    left = [Deadline(None, 10.0, one).seconds_left() for one in (both, alone)]
    assert left[0] == pytest.approx(left[1], abs=PATIENCE_S)


# ---------------------------------------------------------------- signals


def test_sigterm_while_an_engine_starts_again_ends_the_run_in_order(
    tmp_path: Path, run: Run, engine: Any, backend: Any
) -> None:
    """Weights take minutes to load; SLURM gives half of one."""
    is_starting = threading.Event()
    open_engine = backend.open

    @asynccontextmanager
    async def opened() -> AsyncIterator[Any]:
        if engine.num_started == 1:
            is_starting.set()
            await asyncio.Event().wait()
        async with open_engine() as one:
            yield one

    async def dies(request: Any) -> Any:
        raise EngineDeadError("the engine is gone (core): no memory")

    def end() -> None:
        if is_starting.wait(PATIENCE_S):
            os.kill(os.getpid(), signal.SIGTERM)

    backend.open, engine.answer = opened, dies
    killer = threading.Thread(target=end)
    killer.start()
    with pytest.raises(IncompleteRunError, match="stopped by SIGTERM"):
        run(_write(tmp_path / "in.jsonl", 5), tmp_path / "out.jsonl")
    killer.join()


def test_a_worker_whose_engine_starts_lives_and_hears_that_the_run_is_cancelled(
    tmp_path: Path, run: Run, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpcserve.batch.worker._BEAT_S", 0.05)
    run_dir = RunDir.of_output(tmp_path / "out.jsonl")
    seen: list[float] = []

    @asynccontextmanager
    async def opened() -> AsyncIterator[Any]:
        until = time.monotonic() + PATIENCE_S
        while len(set(seen)) < 3 and time.monotonic() < until:
            seen.extend(one.updated_s for one in worker_status.read_all(run_dir))
            await asyncio.sleep(0.02)
        cancel_run(run_dir)
        await asyncio.sleep(PATIENCE_S)
        yield None

    backend.open = opened
    with pytest.raises(RunCancelledError):
        run(_write(tmp_path / "in.jsonl", 5), tmp_path / "out.jsonl")
    assert len(set(seen)) >= 3


@pytest.mark.parametrize("lives", [False, True])
def test_starting_over_is_refused_though_the_clocks_of_nodes_differ(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, lives: bool
) -> None:
    """A worker on a node whose clock is an hour behind is at work; or it was."""
    source, output = _write(tmp_path / "in.jsonl", 5), tmp_path / "out.jsonl"
    run(source, output)
    behind_s = time.time() - 3600.0
    run_dir = _history(tmp_path, ("far", behind_s, behind_s, 3))
    stop = threading.Event()

    def work() -> None:
        number = 0
        while not stop.wait(0.02):
            number += 1
            one = worker_status.read_all(run_dir)[0]
            one.updated_s = behind_s + number
            replace_file(run_dir.workers / "far.json", msgspec.json.encode(one), durable=False)

    far = threading.Thread(target=work)
    monkeypatch.setattr("hpcserve.batch.begin._LOOK_S", PATIENCE_S if lives else 0.1)
    if lives:
        far.start()
        try:
            with pytest.raises(OutputError, match=r"is in work \(process 1 on h\)"):
                run(source, output, fresh=True)
        finally:
            stop.set()
            far.join()
    else:
        assert run(source, output, fresh=True).num_ok == 5


# ---------------------------------------------------------------- runs that finish nothing


def _history(folder: Path, *workers: tuple[str, float, float, int]) -> RunDir:
    """name, start, last sign of life, rows."""
    run_dir = RunDir(folder / "out.jsonl.hpcserve")
    run_dir.create()
    for name, started_s, updated_s, num_rows in workers:
        one = WorkerStatus(
            name=name,
            host="h",
            pid=1,
            job_id="",
            started_s=started_s,
            updated_s=updated_s,
            num_rows=num_rows,
        )
        (run_dir.workers / f"{name}.json").write_bytes(msgspec.json.encode(one))
    return run_dir


@pytest.mark.parametrize(
    ("others", "count"),
    [
        ([], 0),
        # Three side by side with this one that wait for their engines: nothing is proven.
        ([("a", 101, 110, 0), ("b", 102, 110, 0), ("c", 99, 111, 0)], 0),
        # Two times before, one after the other; the first with two workers.
        ([("a", 10, 20, 0), ("b", 11, 19, 0), ("c", 30, 40, 0)], 2),
        # One of those side by side has worked.
        ([("a", 10, 20, 0), ("b", 11, 19, 5), ("c", 30, 40, 0)], 1),
        # And so has one that still does.
        ([("a", 10, 20, 0), ("c", 30, 40, 0), ("d", 90, 130, 7)], 0),
        # Killed before it could say anything.
        ([("a", 10, 10, 0), ("b", 10, 10, 0), ("c", 100, 100, 0)], 1),
    ],
)
def test_only_times_one_after_the_other_count_as_runs_in_vain(
    tmp_path: Path, others: list[tuple[str, float, float, int]], count: int
) -> None:
    run_dir = _history(tmp_path, *others, ("me", 100, 120, 0))
    me = Owner("me", "h", 1, 1.0)
    assert runs_without_progress(run_dir, me) == count


def test_workers_that_are_ended_side_by_side_may_all_come_again(
    tmp_path: Path, run: Run, engine: Any
) -> None:
    """Four tasks of an array, preempted while they load their model: 75 for each."""
    for number in range(4):
        source = _write(tmp_path / "in.jsonl", 5)
        now = time.time()
        run_dir = _history(tmp_path, *((f"w{n}", now - 1, now + 9, 0) for n in range(number)))
        with pytest.raises(IncompleteRunError):
            run(source, tmp_path / "out.jsonl", deadline=now - 1.0)
        run_dir.discard()
