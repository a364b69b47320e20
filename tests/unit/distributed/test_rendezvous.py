"""Where nodes meet: addresses that would work on this machine alone."""

from __future__ import annotations

import queue
import socket
import threading
import time
from typing import Any

import pytest

from hpcserve.distributed import rendezvous
from hpcserve.distributed.rendezvous import Head, Member
from hpcserve.errors import ConfigError, EngineStartError


@pytest.fixture(autouse=True)
def _secret(monkeypatch):
    monkeypatch.setenv("HPCSERVE_DIST_SECRET", "s1")


def test_a_name_that_is_loopback_here_is_refused(monkeypatch):
    """As Debian's /etc/hosts has it for a machine's own name."""
    found = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", 0))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [found])
    with pytest.raises(ConfigError, match=r"node0 is 127\.0\.1\.1, a loopback address"):
        Head("node0:29500", 2, lambda *_: None)


def test_a_loopback_address_that_was_written_down_is_meant():
    Head(f"127.0.0.1:{_free()}", 2, lambda *_: None).close()


def _free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class JumpingClock:
    """Stands in for the module time of whoever was halted, and goes on, when `skip` grows."""

    skip = 0.0
    sleep = staticmethod(time.sleep)

    def monotonic(self) -> float:
        return time.monotonic() + self.skip


def test_a_halt_of_both_sides_parts_nobody(monkeypatch):
    """SLURM halts all processes of a job that it suspends, and lets them go on later."""
    clock = JumpingClock()
    monkeypatch.setattr(rendezvous, "time", clock)
    told: queue.Queue[Any] = queue.Queue()
    address = f"127.0.0.1:{_free()}"
    head = Head(address, 2, lambda node_rank, message: told.put(message))
    member = Member(address, {"kind": "hello", "node_rank": 1}, 60.0)
    try:
        assert told.get(timeout=60)["kind"] == "hello"
        assert member.receive(0.1) is None
        clock.skip += 1000.0
        # Some beats of both sides later, they are still there.
        for _ in range(6):
            assert member.receive(0.5) is None
        member.send({"kind": "still here"})
        assert told.get(timeout=60) == {"kind": "still here"}
    finally:
        member.close()
        head.close()


def test_silence_still_parts(monkeypatch):
    monkeypatch.setattr(rendezvous, "SILENCE_S", 1.0)
    told: queue.Queue[Any] = queue.Queue()
    address = f"127.0.0.1:{_free()}"
    head = Head(address, 2, lambda node_rank, message: told.put(message))
    monkeypatch.setattr(Member, "_beat", lambda self: None)
    member = Member(address, {"kind": "hello", "node_rank": 1}, 60.0)
    try:
        assert told.get(timeout=60)["kind"] == "hello"
        assert told.get(timeout=60) is None
    finally:
        member.close()
        head.close()


def test_one_of_two_that_are_the_same_node_is_refused():
    told: queue.Queue[Any] = queue.Queue()
    address = f"127.0.0.1:{_free()}"
    head = Head(address, 3, lambda node_rank, message: told.put(message))
    members = [Member(address, {"kind": "hello", "node_rank": 1}, 60.0) for _ in range(2)]
    try:
        found: list[Any] = []
        deadline = time.monotonic() + 60
        while not found and time.monotonic() < deadline:
            found = [one for member in members if (one := member.receive(0.1)) is not None]
        assert [one["kind"] for one in found] == ["refused"]
        assert told.get(timeout=60)["kind"] == "hello" and told.empty()
    finally:
        for member in members:
            member.close()
        head.close()


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n" * 9])
def test_something_else_at_the_address_is_not_waited_for(monkeypatch, says):
    monkeypatch.setattr(rendezvous, "_HANDSHAKE_S", 0.5)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        accepted: list[socket.socket] = []

        def answer() -> None:
            accepted.append(other.accept()[0])
            accepted[0].sendall(says)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(EngineStartError, match="something else at that port"):
            Member(address, {"kind": "hello", "node_rank": 1}, 0.1)
        thread.join(60)
        accepted[0].close()
