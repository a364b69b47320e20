"""What another node runs: at most one core for each replica, told apart by its launch."""

from __future__ import annotations

import os
from typing import Any

import pytest

from hpcserve.config.engine import EngineConfig
from hpcserve.engine import node_agent
from hpcserve.ipc.endpoints import Endpoint

CONFIG = EngineConfig.from_options(
    {"model": "m", "dp": 2, "nnodes": 2, "node_rank": 1, "dist_init_addr": "127.0.0.1:1"}
)


class FakeMember:
    def __init__(self, *_: Any) -> None:
        self.sent: list[dict[str, Any]] = []

    def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    def own_address(self) -> str:
        return "127.0.0.1"


class FakeCore:
    """running: cores that have not been ended."""

    running: list[FakeCore]

    @classmethod
    def spawn(cls, config: Any, endpoint: Endpoint, **__: Any) -> FakeCore:
        os.close(endpoint.descriptor)
        assert cls.running == [], "the former one may still hold the GPUs"
        core = cls()
        cls.running.append(core)
        return core

    def on_exit(self, callback: Any) -> None:
        self._on_exit = callback

    def end(self) -> None:
        type(self).running.remove(self)
        self._on_exit(1, "it failed")


@pytest.fixture
def agent(monkeypatch):
    monkeypatch.setattr(FakeCore, "running", [], raising=False)
    monkeypatch.setattr(node_agent, "Member", FakeMember)
    monkeypatch.setattr(node_agent, "CoreProcess", FakeCore)
    return node_agent._Agent(CONFIG, "module")


def test_a_core_is_ended_before_the_next_one_of_its_replica_starts(agent):
    for launch in (1, 2):
        agent._obey({"kind": "core", "dp_rank": 1, "launch": launch})
    assert len(FakeCore.running) == 1
    told = [(one["kind"], one["launch"]) for one in agent._head.sent]
    assert told == [("core", 1), ("core-ended", 1), ("core", 2)]
