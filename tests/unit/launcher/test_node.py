"""One node's process, without SLURM: what it does for its engine, and what it leaves alone."""

from __future__ import annotations

import itertools
import json
import os
import socket
import sys
import time

import pytest

from hpcserve.config.cluster import ClusterConfig
from hpcserve.errors import EngineStartError
from hpcserve.launcher import network, rendezvous
from hpcserve.launcher.base import JobEnvironment
from hpcserve.launcher.files import read_json, write_json
from hpcserve.launcher.job_dir import JobDir
from hpcserve.launcher.node import Node, NodeOptions
from hpcserve.launcher.server_address import ServerAddress
from hpcserve.launcher.signals import SignalInbox


def here(rank):
    return JobEnvironment("7", rank, 2, ("n1", "n2"), f"n{rank + 1}")


@pytest.fixture
def run_node(tmp_path):
    """Runs the node of a rank, whose engine is a line of Python; the head has published."""
    job_dir = JobDir.create(tmp_path / "run")
    write_json(
        job_dir.rendezvous,
        {
            "address": "127.0.0.1",
            "port": 1,
            "secret": "s",
            "machine": network.machine_id(),
            "incarnation": "7.0",
        },
    )

    def run(rank, code, **options):
        engine = f"{sys.executable} -c '{code}'"
        options = NodeOptions(world_size=2, engine_command=engine, **options)
        cluster = ClusterConfig(ifname="lo", fabric="tcp")
        return Node(job_dir, here(rank), cluster, options, SignalInbox(caught=())).run([])

    return job_dir, run


def test_a_slow_node_leaves_the_address_of_the_heads_server(run_node):
    job_dir, run = run_node
    address = ServerAddress(job_dir, "7.0", "127.0.0.1")
    write_json(address.bound_file, {"host": "127.0.0.1", "port": 4321})
    assert run(1, "pass") == 0
    assert read_json(address.bound_file) == {"host": "127.0.0.1", "port": 4321}


def test_the_head_drops_an_old_address_and_publishes_the_new(run_node):
    job_dir, run = run_node
    address = ServerAddress(job_dir, "7.0", "10.0.0.7")
    write_json(address.bound_file, {"host": "0.0.0.0", "port": 1})
    code = (
        'import os, time; f = os.environ["HPCSERVE_ENDPOINT_FILE"]; assert not os.path.exists(f); '
        'open(f, "w").write("{\\"host\\": \\"0.0.0.0\\", \\"port\\": 77}")\n'
        f'while not os.path.exists("{job_dir.server}"): time.sleep(0.05)'
    )
    assert run(0, code) == 0
    assert read_json(job_dir.server) == {
        "address": "127.0.0.1",
        "port": 77,
        "incarnation": "7.0",
    }


def test_exit_codes_are_those_of_a_shell(run_node):
    job_dir, run = run_node
    assert run(1, "raise SystemExit(4)") == 4
    assert run(1, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)") == 128 + 9
    assert json.loads(job_dir.node(1).read_text())["phase"] == "ended"


def test_a_node_ends_its_engine_when_the_supervisor_is_silent(run_node):
    job_dir, run = run_node
    write_json(job_dir.state, {"state": "ready"})
    assert run(0, "import time; time.sleep(60)", orphan_s=0.5) == 0


def test_a_drain_that_the_engine_ignores_ends_it(run_node, monkeypatch):
    monkeypatch.setattr("hpcserve.launcher.node_engine.KILL_AFTER_S", 0.3)
    job_dir, run = run_node
    asked = {"drain": True, "drain_s": 0.5, "why": "x", "incarnation": "7.0"}
    # Asked for once the engine is deaf.
    code = (
        "import json, signal, time; signal.signal(15, signal.SIG_IGN); "
        f'json.dump({json.dumps(asked)[:-1]}}}, open("{job_dir.control}", "w")); time.sleep(60)'
    ).replace("true", "True")
    assert run(1, code) == 128 + 9


def test_a_command_that_is_not_there_is_named(run_node):
    job_dir, _ = run_node
    options = NodeOptions(world_size=2, engine_command="/no/such/engine")
    node = Node(job_dir, here(1), ClusterConfig(ifname="lo"), options, SignalInbox(caught=()))
    with pytest.raises(EngineStartError, match="/no/such/engine"):
        node.run([])


@pytest.fixture
def watching(tmp_path):
    """A node whose engine has not been started, and the word of its supervisor."""
    job_dir = JobDir.create(tmp_path / "run")
    options = NodeOptions(orphan_s=30.0)
    node = Node(job_dir, here(0), ClusterConfig(ifname="lo"), options, SignalInbox(caught=()))
    times = itertools.count(1000)

    def word(incarnation, number):
        write_json(job_dir.state, {"incarnation": incarnation, "restart_count": number})
        os.utime(job_dir.state, (1, next(times)))
        node._obey_supervisor()
        return node._engine.stopping

    return node, word


def test_a_node_makes_room_for_a_later_run_of_the_job(watching):
    _, word = watching
    assert not word("7.0", 1)
    assert not word("6.0", 0)  # the last word of an earlier one
    assert not word("7.0", 1)
    assert word("7.1", 2)


def test_a_node_that_never_saw_its_own_run_believes_no_old_file(watching):
    _, word = watching
    assert not word("6.0", 3)


def test_a_node_that_slurm_suspended_does_not_blame_the_supervisor(watching, monkeypatch):
    node, word = watching
    word("7.0", 1)
    now = time.monotonic()
    for seconds, stops in ((300, False), (301, False), (313, False), (325, False), (337, True)):
        monkeypatch.setattr("hpcserve.launcher.node.time.monotonic", lambda at=now + seconds: at)
        node._obey_supervisor()
        assert node._engine.stopping is stops, seconds


def test_a_node_that_was_told_to_end_starts_no_engine(run_node, monkeypatch, tmp_path):
    job_dir, run = run_node
    told = iter([False, True])
    monkeypatch.setattr(Node, "_told_to_stop", lambda _: next(told))
    assert run(1, f'open("{tmp_path}/started", "w")') == 0
    assert not (tmp_path / "started").exists()
    assert read_json(job_dir.node(1))["phase"] == "ended"


def test_another_runs_address_is_replaced(tmp_path):
    job_dir = JobDir.create(tmp_path / "run")
    old, new = (ServerAddress(job_dir, one, "10.0.0.1") for one in ("7.0", "7.1"))
    for port, one in ((1, old), (2, new)):
        write_json(one.bound_file, {"host": "0.0.0.0", "port": port})
        one.publish()
    old.publish()  # a node of an earlier run that is still there
    assert read_json(job_dir.server)["port"] == 2


def test_who_was_told_to_end_does_not_blame_the_head(tmp_path):
    job_dir = JobDir.create(tmp_path / "run")
    with pytest.raises(EngineStartError, match="told to end"):
        rendezvous.wait_for(job_dir, here(1), 60.0, lambda: True)


def test_a_named_port_is_free_for_the_next_run():
    """Although connections of the one before linger, which the kernel keeps for a minute."""
    first = rendezvous.bind("127.0.0.1")
    address = first.getsockname()
    with socket.create_connection(address) as client:
        accepted, _ = first.accept()
        accepted.close()
        assert client.recv(1) == b""
    first.close()
    rendezvous.bind(*address).close()
