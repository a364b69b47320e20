"""Replicas behind one door: the same text, prefixes kept together, and a life after a death."""

from __future__ import annotations

import asyncio
import os
import signal

from hpcserve import LLM
from hpcserve.config.engine import EngineConfig
from hpcserve.engine.client import EngineClient
from hpcserve.engine.replica import Replica
from hpcserve.engine.replica_set import ReplicaSet
from hpcserve.errors import EngineDeadError
from hpcserve.sampling_params import SamplingParams

ENDLESS = SamplingParams(temperature=0.0, max_tokens=240, ignore_eos=True)
SHORT = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)


def test_text_is_that_of_one(kit, folder_of, expected):
    with LLM(str(folder_of("qwen3")), dp=2, tp=2, **kit.options) as llm:
        assert kit.texts(llm) == expected("qwen3")
        assert llm.stats().num_total_pages == 2 * kit.options["max_total_tokens"] // 16


def hold_starts(monkeypatch) -> asyncio.Event:
    """No replica is started from now on, until the event is set."""
    go_on = asyncio.Event()
    spawn = ReplicaSet._spawn

    async def wait_and_spawn(replicas: ReplicaSet, index: int) -> Replica:
        await go_on.wait()
        return await spawn(replicas, index)

    monkeypatch.setattr(ReplicaSet, "_spawn", wait_and_spawn)
    return go_on


async def _lose_one(kit, folder, monkeypatch) -> None:
    config = EngineConfig.from_options({"model": str(folder), "dp": 2, **kit.options})
    async with await EngineClient.open(config) as client:
        short = await client.complete([5, 6, 7], SHORT)
        running = [client.submit([5, 6, 7 + n], ENDLESS, streams=False) for n in range(4)]
        assert [one.num_open for one in client.replicas] == [2, 2]
        go_on = hold_starts(monkeypatch)
        os.kill(client.replicas[0].pid, signal.SIGKILL)
        ends = await asyncio.gather(*(one.result() for one in running), return_exceptions=True)
        assert sorted(isinstance(one, EngineDeadError) for one in ends) == [
            False,
            False,
            True,
            True,
        ]
        assert client.dead is None
        # While it is away the other serves, and the numbers are those of the other.
        again = await client.complete([5, 6, 7], SHORT)
        assert again.outputs[0].token_ids == short.outputs[0].token_ids
        assert (await client.stats()).num_total_pages == kit.options["max_total_tokens"] // 16
        go_on.set()
        while not all(one.takes_requests for one in client.replicas):
            await asyncio.sleep(0.05)
        client.drain_replica(1)
        assert [one.state for one in client.replicas] == ["ready", "drained"]
        back = await client.complete([5, 6, 7], SHORT)
        assert back.outputs[0].token_ids == short.outputs[0].token_ids
        client.resume_replica(1)
        assert all(one.takes_requests for one in client.replicas)


def test_one_that_dies_is_started_again(kit, folder_of, monkeypatch):
    scenario = _lose_one(kit, folder_of("qwen3"), monkeypatch)
    asyncio.run(asyncio.wait_for(scenario, 300))
