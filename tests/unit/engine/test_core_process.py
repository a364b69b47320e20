"""A core in a process of its own, as the client that started it sees it live and die."""

import asyncio
import os
import signal
import subprocess
import sys
import time

import pytest

from hpcserve.config.engine import EngineConfig
from hpcserve.engine.client import EngineClient
from hpcserve.engine.supervisor import exit_reason
from hpcserve.errors import (
    EngineDeadError,
    EngineStartError,
    ModelError,
)
from hpcserve.fake_engine import write_byte_tokenizer
from hpcserve.sampling_params import SamplingParams
from hpcserve.tokenizer.tokenizer import Tokenizer

GREEDY = SamplingParams(temperature=0.0)


def start(tmp_path, life, *, replicas=1, **options):
    tokenizer = Tokenizer.load(write_byte_tokenizer(tmp_path))
    config = EngineConfig.from_options({"random_seed": life, "dp": replicas})
    return EngineClient.start(config, tokenizer, module="hpcserve.fake_engine", **options)


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_process_serves_and_stops(tmp_path):
    async def scenario():
        async with await start(tmp_path, 0) as client:
            assert client.ready.device == "fake"
            output = await client.complete([65, 66], GREEDY)
            assert output.outputs[0].text == "AB"
            pid = client.replicas[0].pid
            folder = client.replicas[0]._owned._folder
        assert gone(pid)
        assert not folder.exists()

    asyncio.run(scenario())


def test_processes_that_die(tmp_path):
    async def one(life, expected):
        async with await start(tmp_path, life) as client:
            with pytest.raises(EngineDeadError, match=expected):
                await client.complete([65] * 50, GREEDY)

    async def killed():
        async with await start(tmp_path, 3) as client:
            task = asyncio.create_task(client.complete([65] * 500, GREEDY))
            await asyncio.sleep(0.1)
            os.kill(client.replicas[0].pid, signal.SIGKILL)
            with pytest.raises(EngineDeadError, match="SIGKILL"):
                await asyncio.wait_for(task, 30)

    async def scenario():
        await asyncio.gather(one(1, "told to die"), one(2, "exit code 0"), killed())

    asyncio.run(scenario())


def test_a_call_does_not_wait_for_a_core_that_died(tmp_path):
    async def scenario():
        async with await start(tmp_path, 0, replicas=2) as client:
            first, second = client.replicas
            second.send = lambda message: None  # it never gets to answer
            call = asyncio.create_task(client.stats())
            await asyncio.sleep(0.05)
            os.kill(second.pid, signal.SIGKILL)
            assert (await asyncio.wait_for(call, 30)).num_total_pages > 0
            first.send = second.send
            call = asyncio.create_task(client.stats())
            await asyncio.sleep(0)
            os.kill(first.pid, signal.SIGKILL)
            with pytest.raises(EngineDeadError, match="SIGKILL"):
                await asyncio.wait_for(call, 30)

    asyncio.run(scenario())


@pytest.mark.parametrize("end", ["killed", "closed"])
def test_a_core_of_somebody_else_that_ends_is_noticed(tmp_path, end):
    """A client that only connected has no process to watch."""

    async def scenario():
        async with await start(tmp_path, 3) as owner:
            endpoint = owner.replicas[0].endpoint
            async with await EngineClient.connect(endpoint, owner.tokenizer) as client:
                task = asyncio.create_task(client.complete([65] * 500, GREEDY))
                await asyncio.sleep(0.1)
                if end == "closed":
                    await owner.close()
                else:
                    os.kill(owner.replicas[0].pid, signal.SIGKILL)
                with pytest.raises(EngineDeadError, match="connection to it broke"):
                    await asyncio.wait_for(task, 30)
                with pytest.raises(EngineDeadError):
                    client.submit([65], GREEDY)

    asyncio.run(scenario())


def test_a_core_that_never_starts(tmp_path):
    async def scenario():
        tokenizer = Tokenizer.load(write_byte_tokenizer(tmp_path))
        with pytest.raises(EngineStartError, match="exit code 1"):
            await EngineClient.start(EngineConfig(), tokenizer, module="hpcserve.no_such_module")
        with pytest.raises(EngineStartError, match=r"not ready after 0\.3 s"):
            await start(tmp_path, 4, timeout_s=0.3)
        with pytest.raises(ModelError, match=r"^no config\.json in it$") as caught:
            await start(tmp_path, 5)
        assert caught.value.exit_code == 2

    asyncio.run(scenario())


ORPHAN_MAKER = """
import asyncio, os, signal, sys
from pathlib import Path
from hpcserve.config.engine import EngineConfig
from hpcserve.engine.client import EngineClient
from hpcserve.tokenizer.tokenizer import Tokenizer

async def main():
    client = await EngineClient.start(
        EngineConfig(), Tokenizer.load(Path(sys.argv[1])), module="hpcserve.fake_engine"
    )
    print(client.replicas[0].pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def test_a_killed_frontend_leaves_no_core(tmp_path):
    write_byte_tokenizer(tmp_path)
    found = subprocess.run(
        [sys.executable, "-c", ORPHAN_MAKER, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    pid = int(found.stdout)
    for _ in range(3000):
        if gone(pid):
            return
        time.sleep(0.01)
    pytest.fail(f"the core {pid} lives on")


def test_exit_reasons():
    assert "out of memory" in exit_reason(-signal.SIGKILL)
    assert "SIGSEGV" in exit_reason(-signal.SIGSEGV)
    assert "exit code 3" in exit_reason(3)
