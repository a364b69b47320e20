"""Real connections: streams that arrive piece by piece, clients that leave, the openai client."""

import asyncio
import random

import httpx
import openai
import pytest

from hpcserve.fake_engine import say
from hpcserve.server.http import uvicorn_config

USER = [{"role": "user", "content": "hi"}]
ENDLESS = {"ignore_eos": True, "max_tokens": 3000}


def openai_client(served):
    return openai.AsyncOpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0)


def test_openai_client(serve):
    async def scenario(served):
        async with openai_client(served) as client:
            models = await client.models.list()
            name = models.data[0].id
            whole = await client.chat.completions.create(model=name, messages=USER, seed=1)
            assert whole.choices[0].message.content == "user\nhi\nassistant\n"
            stream = await client.chat.completions.create(
                model=name,
                messages=USER,
                stream=True,
                stream_options={"include_usage": True},
                logprobs=True,
                top_logprobs=1,
            )
            chunks = [chunk async for chunk in stream]
            for chunk in chunks:  # the client itself builds without checking
                type(chunk).model_validate(chunk.model_dump())
            text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            assert text == whole.choices[0].message.content
            assert chunks[-1].usage == whole.usage
            done = await client.completions.create(model=name, prompt="abc", logprobs=1)
            assert done.choices[0].text == "abc"
            type(done).model_validate(done.model_dump())
            pieces = await client.completions.create(model=name, prompt="abc", stream=True)
            assert "".join([p.choices[0].text async for p in pieces]) == "abc"

    serve(scenario, real=True)


def test_openai_client_sees_tool_calls(serve):
    async def scenario(served):
        tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
        async with openai_client(served) as client:
            whole = await client.chat.completions.create(
                model="default", messages=USER, tools=tools
            )
            [call] = whole.choices[0].message.tool_calls
            assert (call.function.name, call.function.arguments) == ("f", "{}")
            stream = await client.chat.completions.create(
                model="default", messages=USER, tools=tools, stream=True
            )
            calls = [c async for chunk in stream for c in chunk.choices[0].delta.tool_calls or ()]
            assert [c.function.name for c in calls] == ["f"]

    serve(scenario, real=True, answer=say('<tool_call>{"name": "f", "arguments": {}}</tool_call>'))


def test_openai_client_sees_errors(serve):
    async def scenario(served):
        async with openai_client(served) as client:
            with pytest.raises(openai.NotFoundError, match="no model"):
                await client.chat.completions.create(model="gpt-9", messages=USER)
            with pytest.raises(openai.BadRequestError, match="4096") as caught:
                await client.completions.create(model="default", prompt="a" * 5000)
            assert caught.value.code == "context_length_exceeded"
            with pytest.raises(openai.APIError, match="told to die"):
                stream = await client.completions.create(
                    model="default", prompt="a" * 100, max_tokens=100, stream=True
                )
                async for _ in stream:
                    pass

    serve(scenario, real=True, die_after_steps=20)


def test_idle_connections_outlive_what_clients_keep_of_them():
    assert uvicorn_config(None).timeout_keep_alive > max(httpx.Limits().keepalive_expiry, 60)


def test_pieces_arrive_one_by_one(serve):
    async def scenario(served):
        body = {"messages": USER, "stream": True, **ENDLESS}
        async with served.http.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.aiter_lines()
            first = [await anext(lines) for _ in range(6)]
            assert served.client.num_open == 1
            assert first[0].startswith("data: {")
        await served.emptied()

    serve(scenario, real=True, step_delay_s=0.005)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/generate"])
def test_leaving_aborts_without_stream_too(serve, until, path):
    async def scenario(served):
        sampling = {"ignore_eos": True, "max_new_tokens": 3000}
        body = {"messages": USER, "prompt": ["a", "b"], "text": "a", "sampling_params": sampling}
        asked = asyncio.ensure_future(served.http.post(path, json={**body, **ENDLESS}))
        await until(lambda: served.core.running)
        asked.cancel()  # closes its connection
        await served.emptied()
        assert served.core.aborted >= 1

    serve(scenario, real=True, step_delay_s=0.005)


def test_200_streams_with_random_aborts_leave_nothing(serve):
    async def scenario(served):
        rng = random.Random(7)

        async def one(number):
            await asyncio.sleep(rng.random() * 0.3)
            body = {
                "prompt": "".join(rng.choice("abcdef") for _ in range(rng.randint(1, 40))),
                "max_tokens": rng.randint(1, 60),
                "ignore_eos": True,
                "stream": True,
                "n": rng.choice([1, 1, 2]),
                "stop": rng.choice([None, "abc", ["fa", "bd"]]),
            }
            patience = rng.choice([0, 1, 3, 10, 10**6])
            async with http.stream("POST", "/v1/completions", json=body) as response:
                assert response.status_code == 200
                async for line in response.aiter_lines():
                    patience -= 1
                    if patience < 0:
                        return "left"
                    if line == "data: [DONE]":
                        return "done"
            return "cut"

        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=served.url, limits=limits, timeout=60) as http:
            found = await asyncio.gather(*(one(number) for number in range(200)))
        assert set(found) == {"left", "done"}
        await served.emptied()
        assert len(served.client._processor) == 0

    serve(scenario, real=True, step_delay_s=0.002)
