"""Idle workers of one run, as real processes: who leaves early, and who finishes the run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hpcserve.batch import lease, status
from hpcserve.batch.lease import Claims, Owner
from hpcserve.batch.run_dir import RunDir
from hpcserve.batch.verbs import manifest_of
from hpcserve.batch.verify import verify_run

HERE = Path(__file__).parent
PATIENCE_S = 60.0
NUM_ROWS = 40

#: A worker whose engine answers when the file GATE is there: INPUT OUTPUT GATE OPTIONS
_WORKER = """
import asyncio, importlib.util, json, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("engines", sys.argv[1])
engines = importlib.util.module_from_spec(spec)
spec.loader.exec_module(engines)
from hpcserve.batch import finish, lease, merge, worker
from hpcserve.batch.run import run_batch
from hpcserve.config.batch import BatchConfig, RowDefaults

lease.BEAT_S, worker._POLL_S, finish._POLL_S = 0.1, 0.1, 0.1
gate, options = Path(sys.argv[4]), json.loads(sys.argv[5])
engine = engines.EchoEngine()
answer = engine.answer

async def answered(request):
    while not gate.exists():
        await asyncio.sleep(0.05)
    return await answer(request)

engine.answer = answered
batch = BatchConfig(inputs=(sys.argv[2],), output=sys.argv[3], **options)
result = run_batch(engines.EchoBackend(engine), batch, RowDefaults())
print("left" if result is None else f"finished {result.num_ok}", flush=True)
"""


class Workers:
    def __init__(self, folder: Path) -> None:
        self.source, self.output, self.gate = (
            folder / name for name in ("in.jsonl", "out.jsonl", "gate")
        )
        rows = [{"prompt": f"a {number}"} for number in range(NUM_ROWS)]
        self.source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.run_dir = RunDir.of_output(self.output)
        self.all: list[subprocess.Popen[str]] = []

    def start(self, **options: Any) -> subprocess.Popen[str]:
        options = {"shard_rows": 20, "idle_timeout_s": 0.5, **options}
        words = [HERE / "conftest.py", self.source, self.output, self.gate, json.dumps(options)]
        command = [sys.executable, "-c", _WORKER, *map(str, words)]
        one = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.all.append(one)
        return one

    def ended(self) -> list[subprocess.Popen[str]]:
        return [one for one in self.all if one.poll() is not None]

    def holds(self, number: int) -> bool:
        return self.run_dir.lease(number).exists()


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    found = Workers(tmp_path)
    yield found
    for one in found.all:
        one.kill()
        one.wait()
        assert one.stdout is not None
        one.stdout.close()


def _until(holds: Callable[[], Any]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.05)


def _said(one: subprocess.Popen[str]) -> tuple[int, str]:
    said, _ = one.communicate(timeout=PATIENCE_S)
    return one.returncode, said.strip()


def test_an_idle_worker_ends_in_order_and_the_one_that_stays_finishes_after_a_kill(
    workers: Workers,
) -> None:
    holder = workers.start()
    _until(lambda: workers.holds(0) and workers.holds(1))
    idle = {workers.start(), workers.start()}
    _until(workers.ended)
    (left,) = workers.ended()
    assert left in idle
    assert _said(left) == (0, "left")
    assert not workers.output.exists()
    (spare,) = idle - {left}
    holder.kill()
    holder.wait()
    workers.gate.touch()
    assert _said(spare) == (0, f"finished {NUM_ROWS}")
    assert verify_run(workers.run_dir).problems == []


@pytest.fixture
def stand_in(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Claims]]:
    """A worker of a begun run that beats and does nothing: nothing of it is finished yet."""
    monkeypatch.setattr(lease, "BEAT_S", 0.1)
    made: list[Claims] = []

    def begin(**options: Any) -> Claims:
        workers.gate.touch()
        assert _said(workers.start(**options)) == (0, f"finished {NUM_ROWS}")
        workers.output.unlink()
        made.append(Claims(workers.run_dir, manifest_of(workers.run_dir), Owner.here()))
        return made[-1]

    yield begin
    for one in made:
        one.close()


def test_who_writes_an_unordered_output_meanwhile_does_not_leave(
    workers: Workers, stand_in: Callable[..., Claims]
) -> None:
    other = stand_in(unordered=True)
    for number in workers.run_dir.committed():
        workers.run_dir.shard(number).unlink()
    while other.next() is not None:
        pass
    assert other.stand_by()
    writer = workers.start(unordered=True)
    _until(lambda: workers.holds(2))
    idle = workers.start(unordered=True)
    assert _said(idle) == (0, "left")
    other.close()
    # Its rows are there for the one that stayed.
    assert _said(writer) == (0, f"finished {NUM_ROWS}")
    assert verify_run(workers.run_dir).problems == []


def test_those_who_wait_for_the_output_to_be_written_leave_too(
    workers: Workers, stand_in: Callable[..., Claims]
) -> None:
    writer = stand_in()
    assert writer.take_merge()
    waiting = {workers.start(), workers.start()}
    _until(lambda: waiting & set(workers.ended()))
    (left,) = waiting & set(workers.ended())
    assert _said(left) == (0, "left")
    writer.close()
    (other,) = waiting - {left}
    assert _said(other) == (0, f"finished {NUM_ROWS}")
    assert status.of_run(workers.run_dir)["state"] == "complete"
