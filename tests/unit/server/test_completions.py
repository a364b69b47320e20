import json
from types import SimpleNamespace

import pytest

from hpcserve.engine.open_request import OpenRequest
from hpcserve.engine.output_processor import OutputProcessor
from hpcserve.fake_engine import write_byte_tokenizer
from hpcserve.ipc.messages import EngineCoreOutputs, TokenLogprobs
from hpcserve.protocol.adapter import ResponseHead, completion_inputs
from hpcserve.protocol.body import parse_body
from hpcserve.protocol.chunks import DONE
from hpcserve.protocol.openai import CompletionBody
from hpcserve.server.completions import _Events
from hpcserve.tokenizer.tokenizer import Tokenizer


def events(text):
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


async def stream(served, body):
    response = await served.http.post("/v1/completions", json={**body, "stream": True})
    return events(response.text)


def test_default_is_16_tokens(serve):
    async def scenario(served):
        body = await served.post("/v1/completions", {"prompt": "x" * 40})
        assert body["object"] == "text_completion"
        assert body["choices"][0]["text"] == "x" * 16
        assert body["choices"][0]["finish_reason"] == "length"

    serve(scenario)


def test_prompts_and_answers_have_their_places(serve):
    async def scenario(served):
        body = {"prompt": ["one", "two"], "n": 2}
        whole = await served.post("/v1/completions", body)
        texts = [(c["index"], c["text"]) for c in whole["choices"]]
        assert texts == [(0, "one"), (1, "one"), (2, "two"), (3, "two")]
        assert whole["usage"]["prompt_tokens"] == 6
        chunks = await stream(served, {**body, "stream_options": {"include_usage": True}})
        found = dict.fromkeys(range(4), "")
        for chunk in chunks:
            for choice in chunk["choices"]:
                found[choice["index"]] += choice["text"]
        assert sorted(found.items()) == texts
        assert chunks[-1]["usage"] == whole["usage"]
        ids = await served.post("/v1/completions", {"prompt": [[65], [66, 67]]})
        assert [c["text"] for c in ids["choices"]] == ["A", "BC"]
        assert (await served.post("/v1/completions", {"prompt": [65]}))["choices"][0]["text"] == "A"

    serve(scenario)


def test_echo(serve):
    async def scenario(served):
        body = {"prompt": "abc", "echo": True, "max_tokens": 2}
        assert (await served.post("/v1/completions", body))["choices"][0]["text"] == "abcab"
        assert "".join(c["choices"][0]["text"] for c in await stream(served, body)) == "abcab"
        ids = {**body, "prompt": [97, 98]}
        assert (await served.post("/v1/completions", ids))["choices"][0]["text"] == "abab"

    serve(scenario)


def test_logprobs_of_the_prompt_alone(serve):
    async def scenario(served):
        body = {"prompt": "aé", "echo": True, "max_tokens": 0, "logprobs": 1}
        whole = await served.post("/v1/completions", body)
        [choice] = whole["choices"]
        assert choice["text"] == "aé"
        assert choice["finish_reason"] == "length"
        found = choice["logprobs"]
        assert found["tokens"] == ["a", "�", "�"]
        assert found["token_logprobs"] == [None, -0.5, -0.5]
        assert found["top_logprobs"][0] is None
        assert found["text_offset"] == [0, 1, 2]
        assert whole["usage"]["completion_tokens"] == 0
        [chunk] = await stream(served, body)
        assert chunk["choices"][0]["text"] == "aé"
        assert chunk["choices"][0]["logprobs"] == found

    serve(scenario)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_every_answer_echoes_the_logprobs_of_the_prompt(tmp_path, order):
    """Also one whose first token comes in a later step than another's."""
    tokenizer = Tokenizer.load(write_byte_tokenizer(tmp_path))
    body = parse_body(CompletionBody, {"prompt": "ab", "echo": True, "logprobs": 0, "n": 2})
    prompts = completion_inputs(body, tokenizer)
    context = SimpleNamespace(tokenizer=tokenizer)
    written = _Events(body, prompts, context, ResponseHead.new("cmpl", "m"))
    processor = OutputProcessor()
    request = OpenRequest("name", list(b"ab"), prompts[0].params, tokenizer, streams=True)
    ids = [answer.request_id for answer in processor.open(request)]
    logprobs = TokenLogprobs(-0.5, [], [])
    texts = {}
    for index in order:
        step = EngineCoreOutputs([ids[index]], [99], [], [logprobs], [(ids[index], [logprobs])])
        processor.process(step)
        [chunk] = events((written.write(0, request.take()) + DONE).decode())
        texts[index] = chunk["choices"][0]["logprobs"]["tokens"]
    assert texts == {0: list("abc"), 1: list("abc")}


def test_logprobs_of_the_answer(serve):
    async def scenario(served):
        body = {"prompt": "abc", "max_tokens": 2, "logprobs": 2}
        found = (await served.post("/v1/completions", body))["choices"][0]["logprobs"]
        assert found["tokens"] == ["a", "b"]
        assert found["top_logprobs"] == [{"a": -0.5, "b": -1.5}, {"b": -0.5, "c": -1.5}]
        chunks = [c["choices"][0]["logprobs"] for c in await stream(served, body)]
        assert [t for c in chunks if c for t in c["tokens"]] == ["a", "b"]
        assert [o for c in chunks if c for o in c["text_offset"]] == found["text_offset"]

    serve(scenario)


def test_one_bad_prompt_starts_none(serve):
    async def scenario(served):
        body = await served.post("/v1/completions", {"prompt": ["good", ""]}, expect=400)
        assert "empty" in body["error"]["message"]
        assert served.core.seen == []
        await served.post("/v1/completions", {"prompt": "a", "max_tokens": 0}, expect=400)

    serve(scenario)


def test_one_failure_ends_the_others(serve):
    async def scenario(served):
        body = {"prompt": ["a", "b", "c"], "ignore_eos": True, "max_tokens": 4000}
        for streams in (False, True):
            found = await served.http.post("/v1/completions", json={**body, "stream": streams})
            # Of a stream, the first prompt may already speak when the third one is refused.
            assert found.status_code == 503 or (streams and '"queue_full"' in found.text)
            await served.emptied()

    serve(scenario, max_queued=2, step_delay_s=0.002)
