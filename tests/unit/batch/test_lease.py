"""Who takes which shard: workers that die, are slow, start together, or share a node's name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from hpcserve.batch import lease
from hpcserve.batch.idle import ARRAY_TIMEOUT_S, IdleWatch, idle_timeout_s
from hpcserve.batch.lease import Claims, Owner
from hpcserve.batch.manifest import Manifest
from hpcserve.batch.run_dir import RunDir
from hpcserve.batch.verbs import manifest_of
from hpcserve.config.batch import BatchConfig

NUM_SHARDS = 3


class Clock:
    """The clock of every worker of this test, and the beat of those that live."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(lease, "time", clock)
    monkeypatch.setattr("hpcserve.batch.idle.time", clock)
    monkeypatch.setattr(lease, "BEAT_S", 3600.0)
    return clock


@pytest.fixture
def begun(tmp_path: Path, run: Callable[..., Any]) -> tuple[RunDir, Manifest]:
    """A run of three shards, none of which is finished."""
    rows = [{"prompt": f"a {number}"} for number in range(NUM_SHARDS * 10)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(tmp_path / "in.jsonl", tmp_path / "out.jsonl", shard_rows=10)
    run_dir = RunDir.of_output(tmp_path / "out.jsonl")
    for number in range(NUM_SHARDS):
        run_dir.shard(number).unlink()
    return run_dir, manifest_of(run_dir)


Join = Callable[..., Claims]


@pytest.fixture
def join(begun: tuple[RunDir, Manifest]) -> Iterator[Join]:
    """A worker more, on a node of its own unless it is said where."""
    workers: list[Claims] = []

    def join(name: str, **facts: Any) -> Claims:
        owner = Owner(name, **{"host": f"node-of-{name}", "pid": 17, "started_s": 1.0, **facts})
        workers.append(Claims(*begun, owner))
        return workers[-1]

    yield join
    for one in workers:
        one.close()


def _beat(worker: Claims) -> None:
    """As its thread does it now and then."""
    for number in list(worker._held):
        path = worker._dir.lease(number)
        stat = path.stat()
        lease.os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 5_000_000_000))


def _take_all(worker: Claims) -> list[int]:
    taken = []
    while (claim := worker.next()) is not None:
        taken.append(claim.number)
    return taken


def _wait(clock: Clock, seconds: float, *alive: Claims, watching: Callable[[], Any]) -> None:
    """Time goes by, in steps in which those that live beat and somebody looks."""
    for _ in range(round(seconds / 5)):
        clock.now_s += 5
        for one in alive:
            _beat(one)
        watching()


# ---------------------------------------------------------------- idle workers


def test_of_idle_workers_all_but_one_leave_while_the_others_live(join: Join, clock: Clock) -> None:
    holder, first, second = join("holder"), join("first"), join("second")
    assert len(_take_all(holder)) == NUM_SHARDS
    watches = {one: IdleWatch(one, 20.0) for one in (first, second)}
    over: list[Claims] = []

    def look() -> None:
        for one, watch in watches.items():
            assert one.next() is None
            if watch.is_over():
                over.append(one)

    look()
    assert over == []
    _wait(clock, 15, holder, first, watching=look)
    assert over == []  # not before its time
    _wait(clock, 15, holder, first, watching=look)
    assert set(over) == {second}


def test_nobody_leaves_while_an_owner_has_shown_no_sign_of_life(join: Join, clock: Clock) -> None:
    dead, alive, spare, other = join("dead"), join("alive"), join("spare"), join("other")
    assert dead.next() is not None
    assert len(_take_all(alive)) == NUM_SHARDS - 1
    watch, over, taken = IdleWatch(other, 20.0), [], []

    def look() -> None:
        assert spare.stand_by()
        claim = other.next()
        taken.extend([] if claim is None else [claim.number])
        if claim is None:
            over.append(watch.is_over())

    look()
    _wait(clock, 85, alive, spare, watching=look)
    assert (taken, any(over)) == ([], False)
    _wait(clock, 10, alive, spare, watching=look)
    assert taken == [0]  # and so it is there for what the dead one has left


def test_the_last_idle_worker_stays_and_takes_what_the_others_leave(
    join: Join, clock: Clock
) -> None:
    holder, spare = join("holder"), join("spare")
    _take_all(holder)
    watch = IdleWatch(spare, 20.0)

    def look() -> None:
        assert spare.next() is None
        assert not watch.is_over()

    look()
    _wait(clock, 400, holder, watching=look)
    clock.now_s += 85  # the holder is dead from now on
    assert spare.next() is None
    clock.now_s += 10
    assert _take_all(spare) == [0, 1, 2]
    watch.end()
    # It is no spare any more: another one may be.
    assert join("third").stand_by()


def test_one_who_stood_by_and_died_is_replaced(join: Join, clock: Clock) -> None:
    holder, dead, other = join("holder"), join("dead"), join("other")
    _take_all(holder)
    assert dead.stand_by()
    watch, over = IdleWatch(other, 20.0), []

    def look() -> None:
        assert other.next() is None
        over.append(watch.is_over())

    look()
    _wait(clock, 400, holder, watching=look)
    assert not any(over)
    assert not dead.take(other._spare)


def test_only_tasks_of_an_array_leave_where_nobody_says_it() -> None:
    config = BatchConfig(inputs=("i",), output="o")
    assert idle_timeout_s(config, {}) == float("inf")
    assert idle_timeout_s(config, {"SLURM_ARRAY_TASK_ID": "3"}) == ARRAY_TIMEOUT_S > lease.STALE_S
    never = BatchConfig(inputs=("i",), output="o", idle_timeout_s=0.0)
    assert idle_timeout_s(never, {"SLURM_ARRAY_TASK_ID": "3"}) == float("inf")
    given = BatchConfig(inputs=("i",), output="o", idle_timeout_s=7.0)
    assert idle_timeout_s(given, {}) == 7.0


# ---------------------------------------------------------------- stragglers


def test_a_straggler_gets_one_helper_of_those_who_have_nothing_else(
    join: Join, clock: Clock
) -> None:
    slow, first, second = join("slow"), join("first"), join("second")
    assert slow.next() is not None
    own = first.next()
    assert own is not None
    assert second.next() is not None
    found: list[tuple[str, int]] = []

    def look() -> None:
        for name, one in (("first", first), ("second", second)):
            claim = one.next()
            if claim is not None:
                assert claim.shared
                found.append((name, claim.number))

    look()
    _wait(clock, 100, slow, first, second, watching=look)
    assert found == []  # both have work of their own
    for one, number in ((first, 1), (second, 2)):
        one._dir.shard(number).touch()
        one.release(number)
    _wait(clock, 500, slow, first, second, watching=look)
    assert [number for _, number in found] == [0]


def test_a_late_worker_that_has_finished_nothing_helps_as_well(join: Join, clock: Clock) -> None:
    slow, late = join("slow"), join("late")
    _take_all(slow)
    claims = []

    def look() -> None:
        claim = late.next()
        claims.extend([] if claim is None else [claim])

    _wait(clock, 900, slow, watching=look)
    assert claims == []
    _wait(clock, 600, slow, watching=look)
    assert [one.number for one in claims] == [0]  # one at a time
    assert claims[0].shared


# ---------------------------------------------------------------- workers that start together


def test_a_lease_that_another_has_just_taken_anew_is_left_alone(
    join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both find the lease of a dead one; the slower one must not drop the quicker one's."""
    dead = join("dead", job_id="5", restart="0")
    assert dead.next() is not None
    quick = join("quick", job_id="5", restart="1")
    slow = join("slow", job_id="5", restart="1")
    rename, done = Path.rename, []

    def late(path: Path, target: Path) -> Path:
        if not done:
            done.append(path)
            claim = quick.next()
            assert claim is not None
            assert claim.number == 0
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", late)
    claim = slow.next()
    assert done
    assert claim is not None
    assert claim.number == 1
    assert json.loads(quick._dir.lease(0).read_bytes())["name"] == "quick"
    assert not list(quick._dir.leases.glob(".*"))


def test_processes_of_another_container_are_not_looked_for_here(join: Join) -> None:
    """It has its host's name and ids of its own: what is no process here may be one there."""
    here = {"host": "node", "pids": "pid:[1]"}
    no_process = max(psutil.pids()) + 100_000
    other = join("other", **{**here, "pid": no_process, "pids": "pid:[2]"})
    assert other.next() is not None
    beside = join("beside", **{**here, "pid": no_process})
    assert beside.next() is not None
    mine = join("mine", **here)
    assert _take_all(mine) == [1, 2]  # of the one beside, that is gone; not of the other


def test_a_clock_that_was_set_makes_no_process_another(join: Join) -> None:
    me = psutil.Process()
    real = {"host": "node", "pid": me.pid}
    alive = join("alive", **real, started_s=me.create_time() + 5.0)
    assert alive.next() is not None
    later = join("later", **real, started_s=me.create_time() - 3600.0)
    assert later.next() is not None
    assert _take_all(join("mine", **real, started_s=me.create_time())) == [1, 2]
