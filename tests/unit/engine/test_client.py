import asyncio
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from hpcserve.config.engine import EngineConfig
from hpcserve.engine.client import EngineClient
from hpcserve.engine.supervisor import exit_reason
from hpcserve.errors import (
    ContextLengthError,
    EngineDeadError,
    EngineError,
    EngineStartError,
    InvalidParameterError,
    ModelError,
    QueueFullError,
)
from hpcserve.fake_engine import IM_END, FakeCore, fake_engine, write_byte_tokenizer
from hpcserve.sampling_params import SamplingParams
from hpcserve.tokenizer.tokenizer import Tokenizer

GREEDY = SamplingParams(temperature=0.0)


def with_core(scenario, tmp_path, **core_options):
    core = FakeCore(**core_options)

    async def run():
        async with fake_engine(core, tmp_path) as client:
            await asyncio.wait_for(scenario(client, core), 30)

    asyncio.run(run())
    return core


async def emptied(client):
    for _ in range(3000):
        if (await client.stats()).num_running == 0:
            return
        await asyncio.sleep(0.01)
    pytest.fail("requests run on in the core")


def test_stream_and_complete_give_the_same(tmp_path):
    async def scenario(client, core):
        prompt = list("hé🙂".encode())
        pieces = [output async for output in client.generate(prompt, GREEDY)]
        whole = await client.complete(prompt, GREEDY)
        assert "".join(o.text for p in pieces for o in p.outputs) == "hé🙂"
        assert whole.outputs[0].text == "hé🙂"
        assert whole.outputs[0].token_ids == [*prompt, IM_END]
        assert (whole.outputs[0].finish_reason, whole.outputs[0].stop_reason) == ("stop", IM_END)
        assert whole.num_cached_tokens == 3
        assert pieces[-1].finished
        assert client.num_open == 0

    with_core(scenario, tmp_path)


def test_a_thousand_at_once(tmp_path):
    async def scenario(client, core):
        prompts = [list(f"prompt {n}".encode()) for n in range(1000)]
        outputs = await asyncio.gather(*(client.complete(p, GREEDY) for p in prompts))
        assert [o.outputs[0].text for o in outputs] == [bytes(p).decode() for p in prompts]

    with_core(scenario, tmp_path)


def test_answers_have_seeds_of_their_own(tmp_path):
    async def scenario(client, core):
        params = SamplingParams(n=3, seed=7)
        output = await client.complete([65], params)
        assert [o.index for o in output.outputs] == [0, 1, 2]
        seeds = [request.params.seed for request in core.seen]
        assert seeds[0] == 7
        assert len(set(seeds)) == 3
        assert all(request.params.n == 1 for request in core.seen)
        await client.complete([65], SamplingParams(n=2))
        assert core.seen[-1].params.seed is None

    with_core(scenario, tmp_path)


def test_stop_string_ends_the_request_in_the_core(tmp_path):
    async def scenario(client, core):
        params = SamplingParams(stop=("ST",), ignore_eos=True)
        output = await client.complete(list(b"goSTop"), params)
        assert output.outputs[0].text == "go"
        assert output.num_cached_tokens == 3
        await emptied(client)
        assert core.aborted == 1

    with_core(scenario, tmp_path, step_delay_s=0.005)


def test_leaving_early_aborts(tmp_path):
    async def scenario(client, core):
        endless = SamplingParams(ignore_eos=True)
        async for _ in client.generate([65], endless):
            break  # the generator is closed when it is collected
        stream = client.generate([65], endless)
        await anext(stream)
        await stream.aclose()
        task = asyncio.create_task(client.complete([65], endless))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await emptied(client)
        assert client.num_open == 0

    with_core(scenario, tmp_path, step_delay_s=0.002)


def test_abort_by_name_gives_the_reason(tmp_path):
    async def scenario(client, core):
        endless = SamplingParams(ignore_eos=True)
        task = asyncio.create_task(client.complete([65], endless, name="mine"))
        await asyncio.sleep(0.05)
        with pytest.raises(InvalidParameterError, match="running already"):
            client.submit([65], endless, name="mine")
        assert client.abort("mine")
        assert not client.abort("mine")
        output = await task
        assert output.outputs[0].finish_reason == "abort"
        assert output.outputs[0].text.startswith("A")
        await emptied(client)

    with_core(scenario, tmp_path, step_delay_s=0.002)


@pytest.mark.parametrize(
    ("prompt", "params", "error", "text"),
    [
        ([], {}, InvalidParameterError, "empty"),
        ([999], {}, InvalidParameterError, "999"),
        ([-1], {}, InvalidParameterError, "-1"),
        ([2**40], {}, InvalidParameterError, "prompt"),
        ([1.5, "x"], {}, InvalidParameterError, "prompt"),
        ([259], {}, InvalidParameterError, "259"),
        ([1] * 64, {}, ContextLengthError, "64"),
        ([1] * 60, {"max_tokens": 5}, ContextLengthError, r"65.*64"),
        ([1], {"temperature": -1}, InvalidParameterError, "temperature"),
        ([1], {"stop_token_ids": (999,)}, InvalidParameterError, "999"),
        ([1], {"top_k": 2**63}, InvalidParameterError, "top_k"),
        ([1], {"top_k": 2**32 + 5}, InvalidParameterError, "top_k"),
        ([1], {"min_tokens": 2**64}, InvalidParameterError, "min_tokens"),
    ],
)
def test_what_cannot_run_is_refused_before_it_is_sent(tmp_path, prompt, params, error, text):
    async def scenario(client, core):
        with pytest.raises(error, match=text):
            await client.complete(prompt, SamplingParams(**params))
        assert client.num_open == 0
        assert core.seen == []

    with_core(scenario, tmp_path, context_length=64)


def test_the_largest_request_and_token_id_are_taken(tmp_path):
    async def scenario(client, core):
        assert client.ready.vocab_size == 259
        output = await client.complete([258] * 60, SamplingParams(max_tokens=4, ignore_eos=True))
        assert len(output.outputs[0].token_ids) == 4
        assert [one.num_open for one in client.replicas] == [0]

    with_core(scenario, tmp_path, context_length=64)


def test_numpy_prompts(tmp_path):
    async def scenario(client, core):
        output = await client.complete(np.array([65, 66], np.int32), SamplingParams(n=1))
        assert output.outputs[0].text == "AB"

    with_core(scenario, tmp_path)


def test_full_queue_is_an_error_of_one_request(tmp_path):
    async def scenario(client, core):
        tasks = [asyncio.create_task(client.complete([65] * 9, GREEDY)) for _ in range(5)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        refused = [r for r in results if isinstance(r, QueueFullError)]
        assert len(refused) == 3
        assert refused[0].code == "queue_full"
        with pytest.raises(QueueFullError):
            await client.complete([65] * 9, SamplingParams(n=4))
        await emptied(client)
        assert client.num_open == 0

    with_core(scenario, tmp_path, max_queued=2, step_delay_s=0.01)


def test_drain_waits_then_aborts(tmp_path):
    async def scenario(client, core):
        short = asyncio.create_task(client.complete([65, 66], GREEDY))
        await asyncio.sleep(0.01)
        assert await client.drain(5) == 0
        assert (await short).outputs[0].text == "AB"
        with pytest.raises(EngineError, match="shutting down"):
            await client.complete([65], GREEDY)
        client._admits = True
        endless = asyncio.create_task(client.complete([65], SamplingParams(ignore_eos=True)))
        await asyncio.sleep(0.01)
        assert await client.drain(0.05) == 1
        assert (await endless).outputs[0].finish_reason == "abort"

    with_core(scenario, tmp_path, step_delay_s=0.002)


def test_control_calls(tmp_path):
    async def scenario(client, core):
        await client.complete([65, 66], GREEDY)
        stats = await client.stats()
        assert (stats.prompt_tokens_total, stats.output_tokens_total) == (2, 3)
        await client.flush_cache()
        assert core.num_flushes == 1

    with_core(scenario, tmp_path)


def test_death_reaches_everybody_at_once(tmp_path):
    async def scenario(client, core):
        endless = SamplingParams(ignore_eos=True)
        waiting = [asyncio.create_task(client.complete([65], endless)) for _ in range(20)]
        stream = client.generate([65], endless)
        with pytest.raises(EngineDeadError, match="told to die"):
            async for _ in stream:
                pass
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(result, EngineDeadError) for result in results)
        assert client.dead is not None
        with pytest.raises(EngineDeadError):
            await client.stats()
        with pytest.raises(EngineDeadError):
            client.submit([65], GREEDY)

    with_core(scenario, tmp_path, die_after_steps=5, step_delay_s=0.01)


def test_random_life_leaves_nothing(tmp_path):
    async def scenario(client, core):
        rng = random.Random(1)

        async def one(number):
            params = SamplingParams(
                ignore_eos=True,
                max_tokens=rng.randint(1, 60),
                n=rng.choice([1, 1, 2]),
                stop=rng.choice([(), ("qq",)]),
            )
            prompt = [rng.randint(97, 122) for _ in range(rng.randint(1, 20))]
            patience = rng.randint(1, 40)
            async for output in client.generate(prompt, params):
                patience -= 1
                if output.finished or patience == 0:
                    return

        await asyncio.gather(*(one(n) for n in range(200)))
        await emptied(client)
        assert client.num_open == 0
        assert len(client._processor) == 0

    with_core(scenario, tmp_path)


# ------------------------------------------------------------ a core in its own process


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


def test_a_priority_that_cannot_be_sent_leaves_nothing_open(tmp_path):
    async def scenario(client, core):
        with pytest.raises(InvalidParameterError, match="priority"):
            client.submit([65], GREEDY, priority=2**64)
        assert client.num_open == 0

    with_core(scenario, tmp_path)


def test_a_name_that_users_took_is_left_out(tmp_path):
    async def scenario(client, core):
        taken = [client.submit([65], GREEDY, name=f"request-{n}") for n in range(3)]
        own = client.submit([65], GREEDY)
        assert own.request.name == "request-3"
        for stream in (*taken, own):
            stream.abort()
        await emptied(client)

    with_core(scenario, tmp_path)
