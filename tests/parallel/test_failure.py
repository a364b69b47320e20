"""A rank that is gone ends its replica at once, by name, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from pathlib import Path

import psutil
import pytest

from hpcserve.config.engine import EngineConfig
from hpcserve.engine.client import EngineClient, RequestStream
from hpcserve.errors import EngineDeadError
from hpcserve.sampling_params import SamplingParams

ENDLESS = SamplingParams(temperature=0.0, max_tokens=240, ignore_eos=True)


def worker_of(kit, tp_rank: int) -> psutil.Process:
    """The process of a rank, found by the order of their starts."""
    workers = [one for one in kit.children() if "worker_main" in " ".join(one.cmdline())]
    return sorted(workers, key=lambda one: one.pid)[tp_rank]


def ports_of(processes: list[psutil.Process]) -> list[int]:
    return [
        held.laddr.port
        for process in processes
        for held in process.net_connections("tcp")
        if held.status == psutil.CONN_LISTEN
    ]


async def _last(stream: RequestStream) -> None:
    async for _ in stream:
        pass


async def _break_a_rank(kit, folder: Path, number: signal.Signals) -> tuple[str, float]:
    """Send a signal to rank 1 while four requests run. Returns the error, and how long it took."""
    before = set(kit.children())
    config = EngineConfig.from_options({"model": str(folder), "tp": 2, **kit.options})
    async with await EngineClient.open(config) as client:
        ours = [one for one in kit.children() if one not in before]
        ports = ports_of(ours)
        first = client.submit([5, 6, 7], ENDLESS)
        others = [client.complete([5, 6, 7 + n], ENDLESS) for n in range(3)]
        waiting = asyncio.gather(_last(first), *others, return_exceptions=True)
        await asyncio.sleep(0)
        while not first.request.answers[0].token_ids:
            await asyncio.sleep(0.001)
        rank = worker_of(kit, 1)
        started = time.monotonic()
        rank.send_signal(number)
        ends = await waiting
        took = time.monotonic() - started
        assert [type(one) for one in ends] == [EngineDeadError] * 4
        await asyncio.wait_for(client.died.wait(), 5)
        await asyncio.to_thread(
            kit.wait_until,
            lambda: not any(one.is_running() and one.status() != "zombie" for one in ours),
        )
        for port in ports:
            with socket.socket() as probe:
                assert probe.connect_ex(("127.0.0.1", port)) != 0
        return str(ends[0]), took


@pytest.mark.parametrize(
    ("number", "limit_s", "words"),
    [
        (signal.SIGKILL, 5.0, ["rank 1", "tp 1", "SIGKILL", socket.gethostname()]),
        (signal.SIGSTOP, 10.5, ["rank 1", "tp 1", "no sign of life", socket.gethostname()]),
    ],
)
def test_a_broken_rank_ends_every_request(kit, folder_of, capfd, number, limit_s, words):
    text, took = asyncio.run(_break_a_rank(kit, folder_of("qwen3"), number))
    assert [word for word in words if word not in text] == []
    assert took < limit_s
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert [word for word in words if word not in last] == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_no_rank_outlives_a_core_that_is_gone(kit, folder_of, number):
    async def run() -> None:
        config = EngineConfig.from_options(
            {"model": str(folder_of("qwen3")), "tp": 2, **kit.options}
        )
        before = set(kit.children())
        async with await EngineClient.open(config) as client:
            ours = [one for one in kit.children() if one not in before]
            core = next(one for one in ours if "core_main" in " ".join(one.cmdline()))
            core.send_signal(number)
            await asyncio.wait_for(client.died.wait(), 10.5)
            _, alive = await asyncio.to_thread(psutil.wait_procs, ours, 5)
            assert alive == []

    asyncio.run(run())
