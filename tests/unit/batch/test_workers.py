"""The end of the time, signals, and several workers of one run as real processes."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpcserve.batch import status, verbs
from hpcserve.batch.run_dir import RunDir
from hpcserve.batch.verify import verify_run
from hpcserve.batch.watch import Watch
from hpcserve.errors import (
    HpcserveError,
    IncompleteRunError,
    NoProgressError,
    RunCancelledError,
)

Run = Callable[..., Any]


def test_no_row_starts_that_cannot_end_in_time(
    tmp_path: Path, run: Run, engine: Any, source: Path, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four rows at a time, each of which takes up to 0.4 s; the last second but five is the end."""
    ticks, starts = [], []
    check = Watch._check_time

    def counted(watch: Watch) -> None:
        ticks.append(clock.now_s)
        check(watch)

    answer = engine.answer

    async def answered(request: Any) -> Any:
        starts.append(clock.now_s)
        seen = len(ticks)
        while len(ticks) < seen + 2:  # somebody looks at the clock while it goes
            await asyncio.sleep(0)
        clock.now_s += 0.1
        return await answer(request)

    monkeypatch.setattr("hpcserve.batch.watch._TICK_S", 0)
    monkeypatch.setattr(Watch, "_check_time", counted)
    engine.answer = answered
    options = {"deadline": clock.now_s + 20.0, "deadline_margin_s": 5.0, "max_rows_in_flight": 4}
    end_s = clock.now_s + 15.0
    with pytest.raises(IncompleteRunError, match="a row may take") as raised:
        run(source, tmp_path / "out.jsonl", **options)
    assert raised.value.exit_code == 75
    assert end_s - 2.0 < max(starts) < end_s - 0.3
    assert clock.now_s < end_s
    finished = status.of_run(RunDir.of_output(tmp_path / "out.jsonl"))["num_finished"]
    assert finished == len(engine.answered) == len(starts) > 100
    engine.answer = answer
    assert run(source, tmp_path / "out.jsonl").num_ok == 500
    assert max(Counter(engine.answered).values()) == 1


def test_a_row_longer_than_a_whole_job_is_given_up_the_third_time(
    tmp_path: Path, run: Run, engine: Any, clock: Any, write_rows: Callable[..., Path]
) -> None:
    source = write_rows(10)
    answer = engine.answer

    async def endless(request: Any) -> Any:
        if request.payload[1][1] == "3":
            while len(engine.answered) < 9:
                await asyncio.sleep(0)
            clock.now_s += 1000
            await asyncio.Event().wait()
        return await answer(request)

    engine.answer = endless
    for _ in range(2):
        with pytest.raises(IncompleteRunError):
            run(source, tmp_path / "out.jsonl", deadline=clock.now_s + 900)
    result = run(source, tmp_path / "out.jsonl", deadline=clock.now_s + 900)
    assert result.errors == {"time_limit": 1}
    assert result.num_ok == 9


def test_runs_that_finish_nothing_are_not_to_be_repeated_for_ever(
    tmp_path: Path, run: Run, engine: Any, source: Path
) -> None:
    codes = []
    for _ in range(3):
        with pytest.raises(HpcserveError) as raised:
            run(source, tmp_path / "out.jsonl", deadline=time.time() - 1.0)
        codes.append(raised.value.exit_code)
    assert codes == [75, 75, 1]
    assert isinstance(raised.value, NoProgressError)


def test_cancel_ends_a_run_within_seconds(
    tmp_path: Path, run: Run, engine: Any, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = RunDir.of_output(tmp_path / "out.jsonl")
    answer = engine.answer

    async def then_waits(request: Any) -> Any:
        if len(engine.answered) >= 50:
            if not run_dir.cancelled.exists():
                verbs.cancel_run(run_dir)
            await asyncio.Event().wait()
        return await answer(request)

    engine.answer = then_waits
    with pytest.raises(RunCancelledError):
        run(source, tmp_path / "out.jsonl", max_rows_in_flight=4)
    assert status.of_run(run_dir)["state"] == "cancelled"
    # A job that was queued before does not go on; a person who runs it again means it.
    engine.answer = answer
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    with pytest.raises(RunCancelledError):
        run(source, tmp_path / "out.jsonl")
    monkeypatch.delenv("SLURM_JOB_ID")
    assert run(source, tmp_path / "out.jsonl").num_ok == 500


# ---------------------------------------------------------------- processes


def _child(
    source: Path, output: Path, delay: float = 0.0, until: Path | str = "", **kwargs: Any
) -> subprocess.Popen[str]:
    conftest = Path(__file__).parent / "conftest.py"
    words = (conftest, source, output, delay, until)
    command = [sys.executable, "-c", _CHILD, *map(str, words)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **kwargs)


#: A run in a process of its own: the module of the engine, the input, the output, the delay, and
#: what it waits for before its first answer: a file, or "shared".
_CHILD = """
import asyncio, importlib.util, json, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("engines", sys.argv[1])
engines = importlib.util.module_from_spec(spec)
spec.loader.exec_module(engines)
from hpcserve.batch.run import run_batch
from hpcserve.config.batch import BatchConfig, RowDefaults
from hpcserve.errors import HpcserveError

engine = engines.EchoEngine()
engine.delay_s = float(sys.argv[4])
answer, until = engine.answer, sys.argv[5]
leases = Path(sys.argv[3] + ".hpcserve") / "leases"

def may_answer():
    if until == "shared":  # two workers have shards of the run
        owners = (json.loads(one.read_bytes())["name"] for one in leases.glob("[0-9]*"))
        return len(set(owners)) > 1
    return not until or Path(until).exists()

async def answered(request):
    while not may_answer.seen and not may_answer():
        await asyncio.sleep(0.02)
    may_answer.seen = True
    return await answer(request)

may_answer.seen = False
engine.answer = answered
batch = BatchConfig(inputs=(sys.argv[2],), output=sys.argv[3], log_interval_s=0.2, shard_rows=256)
try:
    run_batch(engines.EchoBackend(engine), batch, RowDefaults())
except HpcserveError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize(
    ("which", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)]
)
def test_a_signal_ends_the_run_and_keeps_the_answers(
    tmp_path: Path, run: Run, which: signal.Signals, code: int, write_rows: Callable[..., Path]
) -> None:
    source = write_rows(60_000, "a b c d")
    output = tmp_path / "out.jsonl"
    process = _child(source, output, 0.05)
    assert process.stderr is not None
    # The first line of progress says that it runs; it comes in a log every 0.2 s.
    line = process.stderr.readline()
    while not line.startswith("batch: ") or line.startswith("batch: 0 of"):
        line = process.stderr.readline()
    process.send_signal(which)
    rest = process.stderr.read()
    process.stderr.close()
    assert process.wait() == code
    assert f"stopped by {which.name}" in rest
    found = status.of_run(RunDir.of_output(output))
    assert 0 < found["num_finished"] < 60_000
    assert f"{found['num_finished']:,} of 60,000 finished rows are kept" in rest
    assert not output.exists()


def test_a_full_disk_ends_the_run_with_75_and_loses_nothing(
    tmp_path: Path, run: Run, engine: Any, write_rows: Callable[..., Path]
) -> None:
    source = write_rows(4000, "a b c d")
    output = tmp_path / "out.jsonl"

    def limited() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    # The manifest fits, a shard of 256 rows does not.
    process = _child(source, output, preexec_fn=limited)
    assert process.stderr is not None
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 75, said
    assert "cannot write" in said
    assert not output.exists()
    kept = status.of_run(RunDir.of_output(output))["num_finished"]
    assert kept > 0
    assert run(source, output, shard_rows=256).num_ok == 4000
    assert len(engine.answered) == 4000 - kept
    assert verify_run(RunDir.of_output(output)).problems == []


def test_four_processes_share_one_run(
    tmp_path: Path, run: Run, write_rows: Callable[..., Path]
) -> None:
    source = write_rows(6000)
    run(source, tmp_path / "alone.jsonl", shard_rows=256)
    output = tmp_path / "out.jsonl"
    children = [_child(source, output, 0.02, "shared") for _ in range(4)]
    for child in children:
        assert child.stderr is not None
        said = child.stderr.read()
        child.stderr.close()
        assert child.wait() == 0, said
    run_dir = RunDir.of_output(output)
    assert output.read_bytes() == (tmp_path / "alone.jsonl").read_bytes()
    assert verify_run(run_dir).problems == []
    workers = status.of_run(run_dir)["workers"]
    assert sum(one["num_rows"] for one in workers) == 6000
    assert sum(one["num_rows"] > 0 for one in workers) > 1


def test_a_paused_owner_loses_its_shard_and_nothing_else(
    tmp_path: Path, run: Run, write_rows: Callable[..., Path]
) -> None:
    """SIGSTOP, another takes the lease by force, SIGCONT: both finish, one commit counts."""
    source = write_rows(3000)
    run(source, tmp_path / "alone.jsonl", shard_rows=256)
    output = tmp_path / "out.jsonl"
    run_dir = RunDir.of_output(output)
    paused = _child(source, output, 0.05)
    while not (run_dir.leases.is_dir() and any(run_dir.leases.glob("[0-9]*"))):
        time.sleep(0.02)
    paused.send_signal(signal.SIGSTOP)
    for lease in run_dir.leases.glob("[0-9]*"):
        lease.unlink()
    assert run(source, output, shard_rows=256).num_ok == 3000
    wanted = output.read_bytes()
    paused.send_signal(signal.SIGCONT)
    assert paused.stderr is not None
    said = paused.stderr.read()
    paused.stderr.close()
    assert paused.wait() in (0, 75), said
    assert wanted == output.read_bytes() == (tmp_path / "alone.jsonl").read_bytes()
    assert verify_run(run_dir).problems == []


def _updates(run_dir: RunDir, pid: int) -> list[float]:
    workers = status.of_run(run_dir)["workers"]
    return [one["updated_s"] for one in workers if one["pid"] == pid]


def test_a_straggler_s_shard_is_taken_over_and_committed_once(
    tmp_path: Path,
    run: Run,
    engine: Any,
    monkeypatch: pytest.MonkeyPatch,
    write_rows: Callable[..., Path],
) -> None:
    """It lives, beats, and works: only slowly. Both answer the rest of its shard; one counts."""
    monkeypatch.setattr("hpcserve.batch.lease._STRAGGLER_S", 0.5)
    source = write_rows(2000)
    run(source, tmp_path / "alone.jsonl", shard_rows=256)
    output = tmp_path / "out.jsonl"
    run_dir = RunDir.of_output(output)
    gate = tmp_path / "gate"
    slow = _child(source, output, until=gate)
    while not (run_dir.leases.is_dir() and any(run_dir.leases.glob("[0-9]*"))):
        time.sleep(0.02)
    held = {one.name for one in run_dir.leases.glob("[0-9]*")}
    engine.answered.clear()
    assert run(source, output, shard_rows=256).num_ok == 2000
    assert slow.poll() is None, "it was no straggler"
    assert held & {f"{number:06d}" for number in run_dir.committed()} == held
    wanted = output.read_bytes()
    # It looks now and then what the others have; two looks more, and it knows.
    for _ in range(2):
        now, until = time.time(), time.monotonic() + 60
        while max(_updates(run_dir, slow.pid)) <= now:
            assert time.monotonic() < until, "it shows no sign of life"
            time.sleep(0.05)
    gate.touch()
    assert slow.stderr is not None
    said = slow.stderr.read()
    slow.stderr.close()
    assert slow.wait() == 0, said
    assert wanted == output.read_bytes() == (tmp_path / "alone.jsonl").read_bytes()
    assert verify_run(run_dir).problems == []
    workers = status.of_run(run_dir)["workers"]
    rows = {one["name"].split("-")[-1]: one["num_rows"] for one in workers}
    assert sum(rows.values()) >= 2000
    # It did not go on with what the other had committed.
    assert min(rows.values()) < 256
