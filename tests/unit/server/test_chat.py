import json
import re

import pytest

from hpcserve.fake_engine import say

USER = [{"role": "user", "content": "hi"}]
ECHO = "user\nhi\nassistant\n"
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'


def events(text):
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


async def stream(served, body):
    response = await served.http.post("/v1/chat/completions", json={**body, "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    return events(response.text)


def joined(chunks, field="content"):
    return "".join(c["delta"].get(field) or "" for e in chunks for c in e["choices"])


def test_whole_answer(serve):
    async def scenario(served):
        body = await served.post("/v1/chat/completions", {"model": "byte-model", "messages": USER})
        assert body["object"] == "chat.completion"
        assert body["model"] == "byte-model"
        [choice] = body["choices"]
        assert choice["message"] == {"role": "assistant", "content": ECHO}
        assert choice["finish_reason"] == "stop"
        assert choice["logprobs"] is None
        usage = body["usage"]
        assert usage["completion_tokens"] == len(ECHO) + 1
        assert usage["prompt_tokens_details"] == {"cached_tokens": 3}
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]

    serve(scenario)


def test_stream_says_the_same(serve):
    async def scenario(served):
        content = [{"type": "text", "text": "grüß 🙂"}]
        body = {"messages": [{"role": "user", "content": content}], "n": 2}
        whole = await served.post("/v1/chat/completions", body)
        chunks = await stream(served, {**body, "stream_options": {"include_usage": True}})
        assert len({chunk["id"] for chunk in chunks}) == 1
        for index in (0, 1):
            mine = [c for e in chunks for c in e["choices"] if c["index"] == index]
            assert mine[0]["delta"] == {"role": "assistant", "content": ""}
            assert mine[-1]["finish_reason"] == "stop"
            text = "".join(c["delta"].get("content", "") for c in mine)
            assert text == whole["choices"][index]["message"]["content"]
        assert all(chunk["usage"] is None for chunk in chunks[:-1])
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"] == whole["usage"]
        without = await stream(served, {"messages": USER})
        assert not any("usage" in chunk for chunk in without)

    serve(scenario)


def test_limits(serve):
    async def scenario(served):
        short = {"messages": USER, "max_tokens": 99, "max_completion_tokens": 4}
        body = await served.post("/v1/chat/completions", short)
        assert body["choices"][0]["message"]["content"] == ECHO[:4]
        assert body["choices"][0]["finish_reason"] == "length"
        endless = {"messages": USER, "ignore_eos": True}
        body = await served.post("/v1/chat/completions", endless)
        assert body["usage"]["total_tokens"] == 128  # the context

    serve(scenario, context_length=128)


def test_stop_strings(serve):
    async def scenario(served):
        body = {"messages": USER, "stop": ["hi\nass", "zzz"]}
        whole = await served.post("/v1/chat/completions", body)
        [choice] = whole["choices"]
        assert choice["message"]["content"] == "user\n"
        assert (choice["finish_reason"], choice["matched_stop"]) == ("stop", "hi\nass")
        assert joined(await stream(served, body)) == "user\n"
        kept = {**body, "include_stop_str_in_output": True}
        assert joined(await stream(served, kept)) == "user\nhi\nass"
        await served.emptied()

    serve(scenario)


def test_logprobs(serve):
    async def scenario(served):
        body = {"messages": USER, "max_tokens": 2, "logprobs": True, "top_logprobs": 2}
        whole = await served.post("/v1/chat/completions", body)
        first, _ = whole["choices"][0]["logprobs"]["content"]
        assert (first["token"], first["logprob"], first["bytes"]) == ("u", -0.5, [ord("u")])
        assert [top["token"] for top in first["top_logprobs"]] == ["u", "v"]
        chunks = await stream(served, body)
        found = [
            entry
            for event in chunks
            for choice in event["choices"]
            if choice["logprobs"]
            for entry in choice["logprobs"]["content"]
        ]
        assert found == whole["choices"][0]["logprobs"]["content"]

    serve(scenario)


def test_tool_calls(serve):
    async def scenario(served):
        body = {"messages": USER, "tools": TOOLS}
        whole = await served.post("/v1/chat/completions", body)
        [choice] = whole["choices"]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] == "Let me see."
        [one, two] = choice["message"]["tool_calls"]
        assert one["type"] == "function"
        assert one["function"] == {"name": "f", "arguments": '{"x": 1}'}
        prompt = bytes(n for n in served.core.seen[0].prompt_token_ids if n < 256)
        assert prompt.startswith(b"tools [{")
        chunks = await stream(served, body)
        calls = [
            call
            for event in chunks
            for choice in event["choices"]
            for call in choice["delta"].get("tool_calls", ())
        ]
        assert [call["index"] for call in calls] == [0, 1]
        assert calls[1]["function"] == two["function"]
        assert joined(chunks).strip() == "Let me see."
        assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
        plain = await served.post("/v1/chat/completions", {**body, "tool_choice": "none"})
        assert CALL in plain["choices"][0]["message"]["content"]
        assert plain["choices"][0]["finish_reason"] == "stop"

    serve(scenario, answer=say(f"Let me see.\n{CALL}\n{CALL}"))


def test_reasoning(serve):
    async def scenario(served):
        body = {"messages": USER}
        whole = await served.post("/v1/chat/completions", body)
        assert whole["choices"][0]["message"]["content"] == "<think>\nhmm\n</think>\n\nParis"
        body = {"messages": USER, "separate_reasoning": True}
        message = (await served.post("/v1/chat/completions", body))["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == ("hmm", "Paris")
        chunks = await stream(served, body)
        assert joined(chunks, "reasoning_content") == "hmm"
        assert joined(chunks) == "Paris"
        off = {"messages": USER, "chat_template_kwargs": {"enable_thinking": False}}
        await served.post("/v1/chat/completions", off)
        prompt = bytes(n for n in served.core.seen[-1].prompt_token_ids if n < 256)
        assert prompt.endswith(b"</think>\n\n")

    serve(scenario, answer=say("<think>\nhmm\n</think>\n\nParis"))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 50_000}]}),
        ("/v1/completions", {"prompt": ["a", "x" * 50_000]}),
        ("/generate", {"text": "x" * 50_000}),
    ],
)
def test_a_prompt_far_too_long_is_refused_at_once(serve, path, body):
    async def scenario(served):
        found = await served.post(path, body, expect=400)
        assert found["error"]["code"] == "context_length_exceeded"
        assert re.search(r"at least 327\d\d tokens", found["error"]["message"])  # 8 x 4,096

    serve(scenario)


def test_what_stands_around_the_prompt(serve):
    async def scenario(served):
        body = {"messages": USER, "max_tokens": 1}
        prompts = {}
        for more in ({}, {"add_generation_prompt": False}, {"add_generation_prompt": None}):
            await served.post("/v1/chat/completions", {**body, **more})
            ids = [int(number) for number in served.core.seen[-1].prompt_token_ids]
            prompts[str(more)] = bytes(number for number in ids if number < 256)
        with_it, without, null = prompts.values()
        assert with_it == null == without + b"assistant\n"
        kwargs = {"chat_template_kwargs": {"self": 1}}
        await served.post("/v1/chat/completions", {**body, **kwargs})

    serve(scenario)


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ({"messages": []}, 400, "messages"),
        ({"messages": USER, "model": "gpt-9"}, 404, "'gpt-9'"),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, 400, "4096"),
        ({"messages": USER, "max_tokens": 5000}, 400, "5000"),
        ({"messages": USER, "temperature": -1}, 400, "temperature"),
        ({"messages": USER, "n": 999}, 400, "n: 999"),
        ({"messages": USER, "response_format": {"type": "yaml"}}, 400, "response_format"),
        ({"messages": USER, "top_k": 2**70}, 400, "top_k"),
        ({"messages": USER, "min_tokens": 2**70}, 400, "min_tokens"),
        ({"messages": USER, "priority": 2**70}, 400, "priority"),
    ],
)
def test_errors_have_openais_form(serve, body, status, text):
    async def scenario(served):
        for streams in (False, True):
            found = await served.post(
                "/v1/chat/completions", {**body, "stream": streams}, expect=status
            )
            assert text in found["error"]["message"]
            assert set(found["error"]) == {"message", "type", "param", "code"}
        assert served.client.num_open == 0

    serve(scenario)
