"""Whom the executor blames, from what its ranks' processes and messages look like."""

from __future__ import annotations

import time
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from hpcserve.config.parallel import ParallelConfig
from hpcserve.distributed.topology import Topology
from hpcserve.engine import executor_mp
from hpcserve.engine.executor_mp import MpExecutor
from hpcserve.errors import EngineDeadError, EngineStartError
from hpcserve.ipc.messages import ProfileReply, StartProfile, WorkerBeat, WorkerFailed


class FakeProcess:
    def __init__(self, code: int | None) -> None:
        self.is_alive = code is None
        self.was_killed = (code or 0) < 0
        self.was_aborted = code == -6
        self._code = code

    def end_reason(self) -> str:
        return f"code {self._code}"


class FakeChannel:
    def receive(self, timeout_ms: int) -> list[Any]:
        time.sleep(timeout_ms / 1000)
        return []


def executor(codes: list[int | None], *complaints: WorkerFailed) -> MpExecutor:
    """Ranks of one replica, with the exit codes of their processes."""
    made = MpExecutor.__new__(MpExecutor)
    made._topology = Topology(ParallelConfig(tp_size=len(codes)))
    made._ranks = tuple(range(len(codes)))
    made._processes = {rank: FakeProcess(code) for rank, code in enumerate(codes)}  # type: ignore
    made._channel = FakeChannel()  # type: ignore[assignment]
    made._complaints = list(complaints)
    made._profile_replies = {}
    made._beats, made._nodes, made._ready = {}, {}, {}
    made._issued = deque()
    made._failure, made._serving = None, True
    made._watchdog_s = 300.0
    made._looked_s = time.monotonic()
    return made


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(executor_mp, "_BLAME_S", 0.01)


@pytest.mark.parametrize(
    ("codes", "rank"), [([-6, -9], 1), ([-6, None], 0), ([-6, -11, -6], 1), ([1, -9], 1)]
)
def test_who_aborts_is_the_victim_of_who_was_killed(codes, rank):
    """NCCL's watchdog ends a rank by SIGABRT when it has lost a peer."""
    with pytest.raises(EngineDeadError, match=rf"^rank {rank} .*code {codes[rank]}$"):
        executor(codes).check()


def test_who_aborts_is_the_victim_of_who_says_that_it_failed():
    failed = WorkerFailed(1, "n0", "out of memory", 1, True)
    with pytest.raises(EngineDeadError, match=r"^rank 1 .* out of memory$"):
        executor([-6, 1], failed).check()


def test_a_halt_of_this_process_is_nobodys_silence(monkeypatch):
    """SLURM halts all processes of a job that it suspends, and lets them go on later."""
    monkeypatch.setattr(executor_mp, "_AWAY_S", 500.0)
    made = executor([None, None])
    long_ago = time.monotonic() - 1000
    made._beats = {rank: (long_ago, WorkerBeat(rank)) for rank in (0, 1)}
    made._issued = deque([(7, long_ago)])
    made._looked_s = long_ago
    made.check()
    # Now it was not away for long, and rank 1 has been silent.
    made._beats[1] = (time.monotonic() - 9, WorkerBeat(1))
    with pytest.raises(EngineDeadError, match=r"^rank 1 .*no sign of life for"):
        made.check()


@pytest.mark.parametrize(
    ("beats", "words"),
    [
        ({0: WorkerBeat(0, 0, "a.py:1 join", True), 1: WorkerBeat(1, 0, "b.py:2 load")},
         ["rank 1 ", "; it is at b.py:2 load"]),
        ({0: WorkerBeat(0, 0, "a.py:1 join", True), 1: WorkerBeat(1, 0, "a.py:1 join", True)},
         ["rank 0 ", "; it is at a.py:1 join"]),
    ],
)  # fmt: skip
def test_who_is_late_is_named_with_what_it_is_at(monkeypatch, beats, words):
    monkeypatch.setenv("HPCSERVE_START_TIMEOUT_S", "0.02")
    made = executor([None, None])
    made._serving = False
    made._nodes = {0: "n0", 1: "n0"}
    made._beats = {rank: (time.monotonic() + 60, beat) for rank, beat in beats.items()}
    with pytest.raises(EngineStartError) as raised:
        made._wait_ready()
    assert [
        word for word in [*words, "not ready in 0.018 s"] if word not in str(raised.value)
    ] == []


def test_who_was_halted_while_starting_is_named(monkeypatch):
    monkeypatch.setenv("HPCSERVE_START_TIMEOUT_S", "0.02")
    made = executor([None, None])
    made._serving = False
    made._nodes = {0: "n0", 1: "n1"}
    now = time.monotonic()
    made._beats = {0: (now + 60, WorkerBeat(0)), 1: (now - 30, WorkerBeat(1))}
    with pytest.raises(EngineStartError, match=r"^rank 1 .* on n1: .*no sign of life for"):
        made._wait_ready()


class SlowChannel:
    """Nothing is heard of the ranks until `takes_s` after a message; then some reply."""

    def __init__(self, takes_s: float, replies: list[ProfileReply]) -> None:
        self.now_s = 1000.0
        self.sent: list[Any] = []
        self._left_s = takes_s
        self._replies = replies

    def broadcast(self, ranks: tuple[int, ...], message: Any) -> None:
        self.sent.append(message)

    def receive(self, timeout_ms: int) -> list[Any]:
        if not timeout_ms:
            return []
        self.now_s += 10.0
        self._left_s -= 10.0
        replies, self._replies = (self._replies, []) if self._left_s <= 0 else ([], self._replies)
        return replies


def profiled(monkeypatch, takes_s: float, *replies: ProfileReply) -> tuple[MpExecutor, SlowChannel]:
    """Two ranks, a step under way, and a clock that moves as they are waited for."""
    channel = SlowChannel(takes_s, list(replies))
    monkeypatch.setattr(executor_mp, "time", SimpleNamespace(monotonic=lambda: channel.now_s))
    made = executor([None, None])
    made._channel = channel  # type: ignore[assignment]
    made._looked_s = channel.now_s
    made._beats = {rank: (channel.now_s, WorkerBeat(rank)) for rank in (0, 1)}
    made._nodes = {0: "n0", 1: "n1"}
    made._issued = deque([(7, channel.now_s)])
    return made, channel


def test_who_writes_a_trace_may_be_silent_and_the_step_behind_it_late(monkeypatch):
    """torch holds the interpreter while it writes, and the thread that beats cannot run."""
    made, channel = profiled(monkeypatch, 400.0, ProfileReply(1, "b"), ProfileReply(0, "a"))
    assert made._ask_profile(StartProfile("/x")) == [ProfileReply(0, "a"), ProfileReply(1, "b")]
    assert channel.sent == [StartProfile("/x")]
    made.check()
    # From then on it counts as ever.
    made._beats[1] = (channel.now_s - 9, WorkerBeat(1))
    with pytest.raises(EngineDeadError, match=r"^rank 1 .*no sign of life for"):
        made.check()


def test_a_trace_that_never_comes_is_not_waited_for_without_end(monkeypatch):
    made, _ = profiled(monkeypatch, 400.0, ProfileReply(0, "a"))
    with pytest.raises(EngineDeadError, match=r"^rank 1 .* on n1: it did not begin a profile in"):
        made._ask_profile(StartProfile("/x"))
