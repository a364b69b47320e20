"""A core and a rank in another process, over every kind of address."""

from __future__ import annotations

import pytest

from hpcserve.ipc.endpoints import Endpoint, create_endpoint, listening_endpoint, new_token
from hpcserve.ipc.messages import StopWorker, WorkerHello
from hpcserve.ipc.worker_channel import STEPS, ExecutorChannel, WorkerSocket


@pytest.mark.parametrize("host", [None, "127.0.0.1", "::1"])
def test_both_ways(tmp_path, host):
    with create_endpoint(tmp_path) as endpoint:
        if host is not None:
            try:
                endpoint = listening_endpoint(host)
            except OSError:
                pytest.skip("this machine has no IPv6")
        core, rank = ExecutorChannel(endpoint), WorkerSocket(endpoint, 3, STEPS)
        rank.send(WorkerHello(3, "n1"))
        assert core.receive(60_000) == [WorkerHello(3, "n1")]
        core.broadcast((3,), StopWorker())
        assert rank.receive(60_000) == StopWorker()
        rank.close()
        core.close()


def test_a_stranger_is_not_heard(tmp_path):
    with create_endpoint(tmp_path) as endpoint:
        core = ExecutorChannel(endpoint)
        stranger = WorkerSocket(Endpoint(endpoint.address, new_token()), 0, STEPS)
        rank = WorkerSocket(endpoint, 0, STEPS)
        stranger.send(WorkerHello(0, "elsewhere"))
        found: list[object] = []
        rank.send(WorkerHello(0, "n0"))
        while not found:
            found += core.receive(60_000)
        assert found == [WorkerHello(0, "n0")]
        for one in (stranger, rank, core):
            one.close()
