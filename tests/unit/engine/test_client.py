"""The client of an engine whose core answers in this process."""

import asyncio
import random

import numpy as np
import pytest

from hpcserve.errors import (
    ContextLengthError,
    EngineDeadError,
    EngineError,
    InvalidParameterError,
    QueueFullError,
)
from hpcserve.fake_engine import IM_END, FakeCore, fake_engine
from hpcserve.sampling_params import SamplingParams

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
