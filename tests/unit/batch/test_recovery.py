"""What ends a run early, and how the next one goes on."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpcserve.batch import journal, status, verbs
from hpcserve.batch import manifest as manifests
from hpcserve.batch.run_dir import RunDir
from hpcserve.batch.verify import verify_run
from hpcserve.batch.watch import Watch
from hpcserve.config.batch import RowDefaults
from hpcserve.errors import (
    EngineDeadError,
    HpcserveError,
    IncompleteRunError,
    InputError,
    NoProgressError,
    RequestError,
    RowsFailedError,
    RunCancelledError,
)

Run = Callable[..., Any]


def _write(path: Path, num_rows: int, text: str = "a {n} b") -> Path:
    rows = [{"custom_id": f"id-{n}", "prompt": text.format(n=n)} for n in range(num_rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def _dies_after(engine: Any, num_answers: int) -> None:
    """The disk breaks: nothing an engine can do about it."""
    answer = engine.answer

    async def answered(request: Any) -> Any:
        if len(engine.answered) >= num_answers:
            raise IncompleteRunError("told to stop")
        return await answer(request)

    engine.answer = answered


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return _write(tmp_path / "in.jsonl", 500)


def _interrupted(run: Run, engine: Any, source: Path, output: Path, after: int, **kw: Any) -> None:
    answer = engine.answer
    _dies_after(engine, after)
    with pytest.raises(IncompleteRunError, match="finished rows are kept") as raised:
        run(source, output, **kw)
    assert raised.value.exit_code == 75
    engine.answer = answer


def test_a_run_goes_on_where_it_was(tmp_path: Path, run: Run, engine: Any, source: Path) -> None:
    output = tmp_path / "out.jsonl"
    run(source, tmp_path / "whole.jsonl", shard_rows=64)
    engine.answered.clear()
    _interrupted(run, engine, source, output, 200, shard_rows=64)
    assert not output.exists()
    found = status.of_run(RunDir.of_output(output))
    assert (found["state"], found["num_rows"]) == ("resumable", 500)
    assert found["num_finished"] >= 200
    result = run(source, output, shard_rows=64)
    assert result.num_ok == 500
    # What was answered and kept was not asked again.
    assert max(Counter(engine.answered).values()) == 1
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert verify_run(RunDir.of_output(output)).problems == []
    assert status.of_run(RunDir.of_output(output))["state"] == "complete"


def test_a_finished_run_is_not_run_again(
    tmp_path: Path, run: Run, engine: Any, source: Path
) -> None:
    run(source, tmp_path / "out.jsonl")
    again = run(source, tmp_path / "out.jsonl")
    assert engine.num_started == 1
    assert again.num_ok == 500
    (tmp_path / "out.jsonl").unlink()
    run(source, tmp_path / "out.jsonl")
    assert engine.num_started == 1
    assert len(_read(tmp_path / "out.jsonl")) == 500


@pytest.mark.parametrize(
    "tail",
    [b"\x07", "é".encode()[:1], b"\0" * 5000, b"\xff" * 64, journal._FRAME.pack(1 << 31, 0)],
)
def test_a_torn_tail_is_cut(
    tmp_path: Path, run: Run, engine: Any, source: Path, tail: bytes
) -> None:
    output = tmp_path / "out.jsonl"
    _interrupted(run, engine, source, output, 100)
    run_dir = RunDir.of_output(output)
    (path,) = run_dir.journals_of(0)
    with path.open("ab") as stream:
        stream.write(tail)
    run(source, output)
    assert verify_run(run_dir).problems == []
    assert max(Counter(engine.answered).values()) == 1


@pytest.mark.parametrize("keep", [0, 27, 28, 60, 200, 399])
def test_a_journal_cut_anywhere_loses_only_what_is_cut(
    tmp_path: Path, run: Run, engine: Any, source: Path, keep: int
) -> None:
    output = tmp_path / "out.jsonl"
    _interrupted(run, engine, source, output, 60)
    run_dir = RunDir.of_output(output)
    (path,) = run_dir.journals_of(0)
    os.truncate(path, keep)
    run(source, output)
    assert verify_run(run_dir).problems == []
    assert len(_read(output)) == 500


def test_a_flipped_bit_is_noticed(tmp_path: Path, run: Run, engine: Any, source: Path) -> None:
    output = tmp_path / "out.jsonl"
    _interrupted(run, engine, source, output, 60)
    (path,) = RunDir.of_output(output).journals_of(0)
    data = bytearray(path.read_bytes())
    data[300] ^= 1
    path.write_bytes(data)
    run(source, output)
    assert verify_run(RunDir.of_output(output)).problems == []


def test_a_damaged_shard_is_put_aside_and_answered_again(
    tmp_path: Path, run: Run, engine: Any, source: Path
) -> None:
    output = tmp_path / "out.jsonl"
    run(source, output, shard_rows=100)
    run_dir = RunDir.of_output(output)
    wanted = output.read_bytes()
    output.unlink()
    path = run_dir.shard(2)
    os.truncate(path, path.stat().st_size - 5)
    with pytest.raises(IncompleteRunError, match="damaged"):
        run(source, output, shard_rows=100)
    engine.answered.clear()
    run(source, output, shard_rows=100)
    assert len(engine.answered) == 100
    assert output.read_bytes() == wanted


def _changes(folder: Path) -> dict[str, Callable[[dict[str, Any], Any], None]]:
    def edited(options: dict[str, Any], backend: Any) -> None:
        text = (folder / "in.jsonl").read_text().replace("a 7 b", "a X b")
        (folder / "in.jsonl").write_text(text)

    def appended(options: dict[str, Any], backend: Any) -> None:
        with (folder / "in.jsonl").open("a") as stream:
            stream.write('{"prompt": "new"}\n')

    def renamed(options: dict[str, Any], backend: Any) -> None:
        shutil.copy(folder / "in.jsonl", folder / "other.jsonl")
        options["source"] = folder / "other.jsonl"

    def model(options: dict[str, Any], backend: Any) -> None:
        backend.model["files"] = "another"

    return {
        "the content of .*in.jsonl is another": edited,
        r"content of .*in\.jsonl": appended,
        "in.jsonl then, .*other.jsonl now": renamed,
        'model: files was "echo", is "another"': model,
        "sampling: temperature was not set, is 0.5": lambda options, backend: options.update(
            defaults=RowDefaults(temperature=0.5)
        ),
        "sampling: seed of the run was 0, is 1": lambda options, backend: options.update(seed=1),
        'template: system_prompt was not set, is "x"': lambda options, backend: options.update(
            system_prompt="x"
        ),
    }


@pytest.mark.parametrize("case", range(7))
def test_changed_content_is_refused_by_name(
    tmp_path: Path, run: Run, engine: Any, backend: Any, source: Path, case: int
) -> None:
    _interrupted(run, engine, source, tmp_path / "out.jsonl", 100)
    message, change = list(_changes(tmp_path).items())[case]
    options: dict[str, Any] = {"source": source}
    change(options, backend)
    with pytest.raises(InputError, match=message):
        run(options.pop("source"), tmp_path / "out.jsonl", **options)
    engine.answered.clear()
    fresh = {"source": source, "fresh": True}
    run(fresh.pop("source"), tmp_path / "out.jsonl", **fresh)
    assert len(engine.answered) >= 500


def test_a_copied_or_touched_input_is_the_same(
    tmp_path: Path, run: Run, engine: Any, source: Path
) -> None:
    _interrupted(run, engine, source, tmp_path / "out.jsonl", 100)
    (tmp_path / "moved").mkdir()
    shutil.move(source, tmp_path / "moved" / "in.jsonl")
    os.utime(tmp_path / "moved" / "in.jsonl")
    assert run(tmp_path / "moved" / "in.jsonl", tmp_path / "out.jsonl").num_ok == 500


def test_an_input_edited_while_the_run_goes_on_is_noticed(
    tmp_path: Path, run: Run, engine: Any, source: Path
) -> None:
    answer = engine.answer

    async def edit_first(request: Any) -> Any:
        text = source.read_text()
        source.write_text(text.replace("a 490 b", "a XXX b"))
        return await answer(request)

    engine.answer = edit_first
    with pytest.raises(InputError, match="has changed since the run began"):
        run(source, tmp_path / "out.jsonl", shard_rows=10, max_rows_in_flight=2)


# ---------------------------------------------------------------- rows that fail


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
    tmp_path: Path, run: Run, engine: Any, clock: Any
) -> None:
    source = _write(tmp_path / "in.jsonl", 20)
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


def test_retry_errors_answers_only_what_failed(tmp_path: Path, run: Run, engine: Any) -> None:
    source = _write(tmp_path / "in.jsonl", 300)
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


# ---------------------------------------------------------------- time


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
    tmp_path: Path, run: Run, engine: Any, clock: Any
) -> None:
    source = _write(tmp_path / "in.jsonl", 10)
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
    tmp_path: Path, run: Run, which: signal.Signals, code: int
) -> None:
    source = _write(tmp_path / "in.jsonl", 60_000, "a b c d")
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
    tmp_path: Path, run: Run, engine: Any
) -> None:
    source = _write(tmp_path / "in.jsonl", 4000, "a b c d")
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


def test_four_processes_share_one_run(tmp_path: Path, run: Run) -> None:
    source = _write(tmp_path / "in.jsonl", 6000)
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


def test_a_paused_owner_loses_its_shard_and_nothing_else(tmp_path: Path, run: Run) -> None:
    """SIGSTOP, another takes the lease by force, SIGCONT: both finish, one commit counts."""
    source = _write(tmp_path / "in.jsonl", 3000)
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
    tmp_path: Path, run: Run, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lives, beats, and works: only slowly. Both answer the rest of its shard; one counts."""
    monkeypatch.setattr("hpcserve.batch.lease._STRAGGLER_S", 0.5)
    source = _write(tmp_path / "in.jsonl", 2000)
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


# ---------------------------------------------------------------- proofs


def test_verify_finds_what_is_wrong(tmp_path: Path, run: Run, source: Path) -> None:
    output = tmp_path / "out.jsonl"
    run(source, output)
    lines = output.read_bytes().splitlines(keepends=True)
    other = json.loads(lines[5])
    other["custom_id"] = "id-6"
    cases = {
        "1 input rows have no output, such as row 4": lines[:3] + lines[4:],
        "1 outputs are there more than once": [*lines, lines[0]],
        "not in the order": [lines[1], lines[0], *lines[2:]],
        "answer no row": [*lines, lines[0].replace(b"batch_req_", b"batch_req_00")],
        "custom_id of another row": [*lines[:5], json.dumps(other).encode() + b"\n", *lines[6:]],
    }
    for problem, changed in cases.items():
        output.write_bytes(b"".join(changed))
        assert any(problem in found for found in verify_run(RunDir.of_output(output)).problems)


def test_a_partial_merge_holds_what_is_finished(
    tmp_path: Path, run: Run, engine: Any, source: Path
) -> None:
    _interrupted(run, engine, source, tmp_path / "out.jsonl", 250, shard_rows=50)
    run_dir = RunDir.of_output(tmp_path / "out.jsonl")
    with pytest.raises(IncompleteRunError, match="--partial"):
        verbs.merge_run(run_dir, None, partial=False)
    where, num_rows = verbs.merge_run(run_dir, str(tmp_path / "some.jsonl"), partial=True)
    assert num_rows == len(_read(where)) == 50 * len(run_dir.committed()) > 0


def test_the_report_is_one_page_with_plots(tmp_path: Path, run: Run, source: Path) -> None:
    run(source, tmp_path / "out.jsonl")
    run_dir = RunDir.of_output(tmp_path / "out.jsonl")
    page = run_dir.html_report.read_text(encoding="utf-8")
    assert page.count("<svg") >= 3
    assert '<td><span style="color:hsl(210 60% 45%)">' in page
    assert "http" not in page
    report = json.loads(run_dir.report.read_bytes())
    assert report["num_ok"] == 500
    assert report["percentiles"]["output tokens per row"]["p50"] == 3.0


def test_manifest_of_another_version_is_refused(tmp_path: Path, run: Run, source: Path) -> None:
    run(source, tmp_path / "out.jsonl")
    path = RunDir.of_output(tmp_path / "out.jsonl").manifest
    found = json.loads(path.read_bytes())
    path.write_text(json.dumps({**found, "version": 99}))
    with pytest.raises(HpcserveError, match="--fresh"):
        manifests.load(path)
