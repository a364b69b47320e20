"""A rank that is gone ends its replica at once, by name, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from hpcserve.config.engine import EngineConfig
from hpcserve.engine.client import EngineClient, RequestStream
from hpcserve.errors import EngineDeadError
from hpcserve.sampling_params import SamplingParams

ENDLESS = SamplingParams(temperature=0.0, max_tokens=220, ignore_eos=True)


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


async def _break_a_rank(kit, folder: Path, number: signal.Signals, tp_rank: int) -> str:
    """Send a signal to a rank while four requests run. Returns the error."""
    before = set(kit.children())
    config = EngineConfig.from_options({"model": str(folder), "tp": 2, **kit.options})
    async with await EngineClient.open(config) as client:
        ours = [one for one in kit.children() if one not in before]
        ports = ports_of(ours)
        rank = worker_of(kit, tp_rank)
        first = client.submit([5, 6, 7], ENDLESS)
        others = [client.complete([5, 6, 7 + n], ENDLESS) for n in range(3)]
        waiting = asyncio.gather(_last(first), *others, return_exceptions=True)
        await asyncio.sleep(0)
        while not first.request.answers[0].token_ids:
            await asyncio.sleep(0.001)
        rank.send_signal(number)
        ends = await waiting
        assert [type(one) for one in ends] == [EngineDeadError] * 4
        await asyncio.wait_for(client.died.wait(), 60)
        await asyncio.to_thread(
            kit.wait_until,
            lambda: not any(one.is_running() and one.status() != "zombie" for one in ours),
        )
        for port in ports:
            with socket.socket() as probe:
                assert probe.connect_ex(("127.0.0.1", port)) != 0
        return str(ends[0])


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGKILL, "SIGKILL"), (signal.SIGSTOP, "no sign of life")]
)
def test_a_broken_rank_ends_every_request(kit, folder_of, capfd, number, reason, rank):
    text = asyncio.run(_break_a_rank(kit, folder_of("qwen3"), number, rank))
    words = [f"rank {rank}", f"tp {rank}", reason, socket.gethostname()]
    assert [word for word in words if word not in text] == []
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
            await asyncio.wait_for(client.died.wait(), 60)
            _, alive = await asyncio.to_thread(psutil.wait_procs, ours, 60)
            assert alive == []

    asyncio.run(run())


async def _hang_a_rank(kit, folder: Path) -> str:
    """Let rank 1 take up a step and never end it. Returns the error of whoever waits."""
    config = EngineConfig.from_options(
        {"model": str(folder), "tp": 2, "watchdog_timeout": 5.0, **kit.options}
    )
    async with await EngineClient.open(config, module="hanging_core") as client:
        await client.complete([5, 6, 7], SamplingParams(max_tokens=3, ignore_eos=True))
        running = [client.complete([5, 6, 7 + n], ENDLESS) for n in range(2)]
        ends = await asyncio.gather(
            *running, client.complete(list(range(3, 28)), ENDLESS), return_exceptions=True
        )
        assert [type(one) for one in ends] == [EngineDeadError] * 3
        return str(ends[0])


def test_a_rank_that_hangs_is_told_from_those_that_wait_for_it(kit, folder_of, monkeypatch, capfd):
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    text = asyncio.run(_hang_a_rank(kit, folder_of("qwen3")))
    last = capfd.readouterr().err.strip().splitlines()[-1]
    for line in (text, last):
        assert "rank 1 (dp 0, pp 0, tp 1; node 0, device 1)" in line
        assert "--watchdog-timeout" in line and "worker_main.py" in line


def _serve(folder: Path, log: Path) -> subprocess.Popen[bytes]:
    arguments = ["--tp", "2", "--port", "0", "--device", "cpu", "--cpu-threads", "1"]
    arguments += ["--max-total-tokens", "2048", "--max-running-requests", "6"]
    with log.open("wb") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "hpcserve", "serve", str(folder), *arguments],
            stdout=out,
            stderr=out,
        )


def test_a_killed_frontend_leaves_nothing_and_a_halted_one_goes_on(kit, folder_of, tmp_path):
    log = tmp_path / "log"
    frontend = _serve(folder_of("qwen3"), log)
    try:
        kit.wait_until(lambda: "http://127.0.0.1:" in log.read_text(), 200)
        url = re.search(r"http://127.0.0.1:\d+", log.read_text()).group()
        ours = kit.children(frontend.pid)
        ports = ports_of([psutil.Process(frontend.pid), *ours])
        frontend.send_signal(signal.SIGSTOP)
        time.sleep(1)
        frontend.send_signal(signal.SIGCONT)
        with urllib.request.urlopen(f"{url}/health", timeout=60) as answer:
            assert answer.status == 200
        frontend.kill()
        frontend.wait()
        kit.wait_until(lambda: not any(one.is_running() for one in ours))
    finally:
        frontend.kill()
        frontend.wait()
    assert len(ours) == 3 and ports
    for port in ports:
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
