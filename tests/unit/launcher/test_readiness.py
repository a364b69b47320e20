"""A server is asked beside the supervisor's loop, and is ready when it has made a token."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

import pytest

from hpcserve.launcher.files import read_json
from hpcserve.launcher.readiness import Probe, Server


def until(holds, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


@pytest.fixture
def server(tmp_path):
    words = ["-m", "hpcserve.launcher.testing.fake_server", "--host", "127.0.0.1"]
    bound = tmp_path / "bound.json"
    process = subprocess.Popen(
        [sys.executable, *words],
        env={"HPCSERVE_ENDPOINT_FILE": str(bound), "HPCSERVE_API_KEY": "k", "PATH": "/usr/bin"},
        stdout=subprocess.DEVNULL,
    )
    yield until(lambda: read_json(bound))["port"]
    process.kill()
    process.wait()


def test_a_server_that_makes_a_token_is_ready(server):
    probe = Probe()
    assert not probe.is_ready(Server("127.0.0.1", server, "k"))  # the question is on its way
    until(lambda: probe.is_ready(Server("127.0.0.1", server, "k")))


def test_health_alone_will_not_do(server, monkeypatch):
    monkeypatch.setattr("hpcserve.launcher.readiness._PAUSE_S", 0.0)
    probe = Probe()
    for _ in range(10):
        assert not probe.is_ready(Server("127.0.0.1", server, "wrong key"))
        time.sleep(0.02)


def test_a_server_that_takes_connections_and_is_silent_holds_nobody_up():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        probe = Probe()
        for _ in range(3):
            assert not probe.is_ready(Server("127.0.0.1", listener.getsockname()[1]))
        assert probe._thread.is_alive()  # it still waits for the answer, and nobody for it
