"""One node's process, without SLURM: what it does for its engine, and what it leaves alone."""

from __future__ import annotations

import json
import sys

import pytest

from hpcserve.config.cluster import ClusterConfig
from hpcserve.errors import EngineStartError
from hpcserve.launcher import network
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
        'open(f, "w").write("{\\"host\\": \\"0.0.0.0\\", \\"port\\": 77}"); time.sleep(1)'
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
    write_json(job_dir.control, {"drain": True, "drain_s": 0.5, "why": "x", "incarnation": "7.0"})
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
    assert run(1, code) == 128 + 9


def test_a_command_that_is_not_there_is_named(run_node):
    job_dir, _ = run_node
    options = NodeOptions(world_size=2, engine_command="/no/such/engine")
    node = Node(job_dir, here(1), ClusterConfig(ifname="lo"), options, SignalInbox(caught=()))
    with pytest.raises(EngineStartError, match="/no/such/engine"):
        node.run([])
