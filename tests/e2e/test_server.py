"""`hpcserve serve` as users run it: a process, a port, real clients."""

from __future__ import annotations

import asyncio
import json
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

pytestmark = pytest.mark.timeout(400)

SERVE = [sys.executable, "-m", "hpcserve", "serve"]
#: What a test waits for at most: none depends on how fast the machine is.
PATIENCE_S = 120


class Server:
    """A server process; `url` is known once it said so."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [*SERVE, "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            found = re.search(r"http://[\d.]+:\d+", line)
            if found:
                self.url = found[0]
                break
        else:
            raise AssertionError(f"the server ended: {''.join(self.lines)}")
        # Whoever says more than a pipe holds waits until it is read.
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(self.process.stdout)

    def end(self) -> tuple[int, str]:
        """Exit code, and all that it said."""
        code = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return code, "".join(self.lines)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=PATIENCE_S)

    def post(self, path: str, **content: Any) -> httpx.Response:
        return httpx.post(self.url + path, timeout=PATIENCE_S, **content)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        self.end()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("--max-total-tokens", "4096") as started:
        yield started


def loads(server: Server) -> dict:
    return server.get("/get_server_info").json()["load"]


def test_the_stock_openai_client(server: Server) -> None:
    from openai import OpenAI

    with OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        assert client.models.list().data[0].id == "tiny-chat"
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        answer = client.chat.completions.create(model="tiny-chat", messages=messages, temperature=0)
        assert answer.choices[0].message.content == "The capital of France is Paris."
        assert answer.choices[0].finish_reason == "stop"
        stream = client.chat.completions.create(
            model="tiny-chat",
            messages=messages,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == "The capital of France is Paris."
        assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens
        done = client.completions.create(
            model="tiny-chat", prompt="The capital of France is", temperature=0, max_tokens=8
        )
        assert done.choices[0].text == " Paris."


def test_answers_in_a_given_form(server: Server) -> None:
    import openai
    from pydantic import BaseModel, Field

    class Capital(BaseModel):
        city: str = Field(max_length=20)
        country: str = Field(max_length=20)

    question = [{"role": "user", "content": "What is the capital of France?"}]
    tool = {
        "type": "function",
        "function": {"name": "look_up", "parameters": Capital.model_json_schema()},
    }
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        parsed = client.chat.completions.parse(
            model="default", messages=question, response_format=Capital, temperature=0
        )
        assert parsed.choices[0].message.parsed.city == "Paris"
        called = client.chat.completions.create(
            model="default", messages=question, tools=[tool], tool_choice="required", temperature=0
        )
        [call] = called.choices[0].message.tool_calls
        assert call.function.name == "look_up"
        Capital.model_validate_json(call.function.arguments)
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError, match="regex: Regex parsing error") as bad:
                client.chat.completions.create(
                    model="default", messages=question, extra_body={"regex": "(["}, stream=stream
                )
            assert (bad.value.code, bad.value.param) == ("invalid_grammar", "regex")
    bad_sampling = {"text": "x", "sampling_params": {"ebnf": "root ::= ("}}
    error = server.post("/generate", json=bad_sampling).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_grammar", "sampling_params")
    sum_of = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}
    body = {
        "messages": [{"role": "user", "content": "What is 12 plus 7?"}],
        "chat_template_kwargs": {"enable_thinking": True},
        "separate_reasoning": True,
        "json_schema": sum_of,
        "temperature": 0,
        "max_tokens": 150,
    }
    answer = server.post("/v1/chat/completions", json=body)
    message = answer.json()["choices"][0]["message"]
    assert "Together 19" in message["reasoning_content"]
    assert isinstance(json.loads(message["content"])["sum"], int)
    sampling = {"regex": "[0-9]{3}", "temperature": 1.0}
    answer = server.post("/generate", json={"text": "x", "sampling_params": sampling})
    assert re.fullmatch("[0-9]{3}", answer.json()["text"])


def test_the_native_api(server: Server) -> None:
    body = {"text": "The capital of France is", "sampling_params": {"temperature": 0}}
    answer = server.post("/generate", json=body).json()
    assert answer["text"] == " Paris."
    meta = answer["meta_info"]
    assert meta["finish_reason"]["type"] == "stop"
    assert meta["completion_tokens"] == len(answer["output_ids"])
    assert server.get("/health_generate").status_code == 200
    assert server.get("/get_model_info").json()["model_path"]


def test_a_prompt_that_is_too_long_is_told_both_numbers(server: Server) -> None:
    body = {"model": "tiny-chat", "prompt": [5] * 3000}
    answer = server.post("/v1/completions", json=body)
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert "3000" in message and "2048" in message
    broken = server.post("/v1/completions", content=b"{not json")
    assert broken.status_code == 400


def test_a_seed_gives_the_same_text_whatever_else_runs(server: Server) -> None:
    def body(seed: int) -> dict:
        sampling = {"temperature": 1.5, "max_new_tokens": 40, "sampling_seed": seed}
        return {"text": "Once upon a time", "sampling_params": sampling}

    async def together() -> list[str]:
        async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
            asked = [client.post(f"{server.url}/generate", json=body(seed)) for seed in range(12)]
            return [answer.json()["text"] for answer in await asyncio.gather(*asked)]

    alone = server.post("/generate", json=body(3)).json()["text"]
    texts = asyncio.run(together())
    assert texts[3] == alone
    assert len(set(texts)) > 6


def test_200_streams_with_random_aborts_leave_the_engine_empty(server: Server) -> None:
    rng = random.Random(5)
    complete = 0

    async def one(client: httpx.AsyncClient, leaves_after: int | None) -> None:
        nonlocal complete
        body = {
            "model": "tiny-chat",
            "prompt": f"Count from 1 to {rng.randrange(20, 40)}",
            "max_tokens": 60,
            "ignore_eos": True,
            "temperature": 0.7,
            "stream": True,
        }
        seen = 0
        async with client.stream("POST", f"{server.url}/v1/completions", json=body) as response:
            assert response.status_code == 200
            async for line in response.aiter_lines():
                seen += line.startswith("data: {")
                if leaves_after is not None and seen >= leaves_after:
                    return
                if line == "data: [DONE]":
                    complete += 1

    async def all_of_them() -> None:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(timeout=PATIENCE_S, limits=limits) as client:
            leaving = [rng.randrange(0, 40) if rng.random() < 0.5 else None for _ in range(200)]
            await asyncio.gather(*(one(client, after) for after in leaving))
            assert complete >= leaving.count(None)

    asyncio.run(all_of_them())
    deadline = time.monotonic() + PATIENCE_S
    while (load := loads(server))["num_running"] or load["num_waiting"]:
        assert time.monotonic() < deadline, load
        time.sleep(0.1)
    assert load["num_free_pages"] + load["num_cached_pages"] == load["num_total_pages"]


def test_ctrl_c_drains_and_exits_0() -> None:
    with (
        Server("--drain-timeout", "300") as server,
        httpx.Client(timeout=PATIENCE_S) as client,
    ):
        body = {"model": "x", "prompt": "Count", "max_tokens": 400, "ignore_eos": True}
        body |= {"model": "tiny-chat", "stream": True}
        with client.stream("POST", f"{server.url}/v1/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGINT)
            rest = [line for line in lines if line.startswith("data: ")]
        assert rest[-1] == "data: [DONE]"
        last = json.loads(rest[-2].removeprefix("data: "))
        assert last["choices"][0]["finish_reason"] == "length"
        assert server.end()[0] == 0


def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run([*SERVE, "--port", port], capture_output=True, text=True)
    assert done.returncode == 2
    assert port in done.stderr
    assert "Traceback" not in done.stderr


def test_a_core_that_is_killed_ends_the_server_with_one_line() -> None:
    with Server() as server:
        children = psutil.Process(server.process.pid).children()
        assert children
        for child in children:
            child.kill()
        code, said = server.end()
    assert code != 0
    assert "error:" in said
    assert "Traceback" not in said
