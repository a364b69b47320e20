"""What node 0 makes of the news of other nodes: only that of what it started last counts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from hpcserve.config.engine import EngineConfig
from hpcserve.engine import nodes
from hpcserve.engine.node_agent import shared_options
from hpcserve.engine.nodes import Nodes
from hpcserve.errors import EngineStartError

CONFIG = EngineConfig.from_options(
    {"model": "m", "tp": 2, "dp": 2, "nnodes": 2, "dist_init_addr": "127.0.0.1:1"}
)


class FakeHead:
    """Keeps what is sent; `tell` is a message of node 1."""

    def __init__(self, address: str, num_nodes: int, on_message: Any) -> None:
        self.sent: list[dict[str, Any]] = []
        self._on_message = on_message

    def send(self, node_rank: int, message: dict[str, Any]) -> None:
        self.sent.append(message)

    async def tell(self, **message: Any) -> None:
        """Nothing: node 1 is gone."""
        self._on_message(1, message or None)
        await asyncio.sleep(0)

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(nodes, "Head", FakeHead)
    for name in ("_LAST_WORDS_S", "_BLAME_S"):
        monkeypatch.setattr(nodes, name, 0.05)


class Seen:
    """ended: (dp_rank, exit code, reason) of cores, as they were told."""

    def __init__(self) -> None:
        self.ended: list[tuple[int, int, str]] = []
        self.nodes = Nodes(CONFIG, lambda *_: None, lambda *told: self.ended.append(told))
        self.head: FakeHead = self.nodes._head  # type: ignore[assignment]

    async def join(self) -> None:
        await self.head.tell(kind="hello", node_rank=1, host="n1", options=shared_options(CONFIG))

    async def start(self) -> int:
        """Start replica 1; returns which launch that is."""
        starting = asyncio.ensure_future(self.nodes.start_core(1))
        while not (self.head.sent and self.head.sent[-1]["kind"] == "core"):
            await asyncio.sleep(0)
        launch: int = self.head.sent.pop()["launch"]
        await self.head.tell(
            kind="core", dp_rank=1, launch=launch, endpoint="tcp://127.0.0.1:2#t", workers=None
        )
        await starting
        return launch

    async def until_told(self) -> None:
        while not self.ended:
            await asyncio.sleep(0.01)


def run(scenario: Any) -> None:
    asyncio.run(asyncio.wait_for(scenario, 60))


def test_the_end_of_a_core_that_was_replaced_is_no_news():
    """A core that failed takes seconds to give its GPUs back; its replica is started at once."""

    async def scenario() -> None:
        seen = Seen()
        await seen.join()
        first = await seen.start()
        second = await seen.start()
        await seen.head.tell(kind="core-ended", dp_rank=1, launch=first, code=1, reason="old")
        await seen.head.tell(kind="core-ended", dp_rank=1, launch=second, code=3, reason="new")
        await seen.until_told()
        assert seen.ended == [(1, 3, "new")]

    run(scenario())


def test_an_end_that_comes_just_before_the_next_start_does_not_end_that():
    async def scenario() -> None:
        seen = Seen()
        await seen.join()
        first = await seen.start()
        await seen.head.tell(kind="core-ended", dp_rank=1, launch=first, code=1, reason="old")
        second = await seen.start()
        await seen.head.tell(kind="core-ended", dp_rank=1, launch=second, code=1, reason="new")
        await seen.until_told()
        assert seen.ended == [(1, 1, "new")]

    run(scenario())


def test_a_rank_that_ends_is_named_to_whoever_waits_for_its_replica():
    """A core that is starting hears nothing of a rank on another node that is gone."""

    async def scenario() -> None:
        seen = Seen()
        await seen.join()
        launch = await seen.start()
        news = {"kind": "worker-ended", "dp_rank": 1, "rank": 3, "reason": "ended by SIGKILL"}
        await seen.head.tell(**news, launch=launch - 1)
        await seen.head.tell(**news, launch=launch)
        await seen.until_told()
        await asyncio.sleep(0.1)
        assert seen.ended == [
            (1, 1, "rank 3 (dp 1, pp 0, tp 1; node 1, device 1) on n1: ended by SIGKILL")
        ]

    run(scenario())


def test_a_start_that_nobody_waits_for_any_more_is_no_error():
    async def scenario() -> None:
        errors: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, told: errors.append(told))
        seen = Seen()
        await seen.join()
        starting = asyncio.ensure_future(seen.nodes.start_core(1))
        while not seen.head.sent:
            await asyncio.sleep(0)
        starting.cancel()
        reply = {"kind": "core", "dp_rank": 1, "launch": 1, "workers": None}
        await seen.head.tell(**reply, endpoint="tcp://127.0.0.1:2#t")
        await asyncio.sleep(0.01)
        assert errors == []

    run(scenario())


def test_a_node_that_goes_before_its_replica_ever_ran_ends_the_start():
    async def scenario() -> None:
        seen = Seen()
        await seen.join()
        await seen.head.tell()
        with pytest.raises(EngineStartError, match="node 1 went away"):
            await seen.nodes.start_core(1)

    run(scenario())


def test_a_node_that_goes_later_is_waited_for(monkeypatch):
    monkeypatch.setattr(nodes, "_REJOIN_POLL_S", 0.01)

    async def scenario() -> None:
        seen = Seen()
        await seen.join()
        first = await seen.start()
        await seen.head.tell()
        starting = asyncio.ensure_future(seen.start())
        await asyncio.sleep(0.05)
        assert not starting.done() and seen.head.sent == []
        await seen.join()
        assert await starting == first + 1

    run(scenario())
