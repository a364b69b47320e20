import asyncio
import json
from itertools import pairwise
from types import SimpleNamespace

from hpcserve.engine.open_request import OpenRequest
from hpcserve.engine.output_processor import OutputProcessor
from hpcserve.fake_engine import write_byte_tokenizer
from hpcserve.ipc.messages import EngineCoreOutputs, FinishedRequest, TokenLogprobs
from hpcserve.protocol.adapter import generate_inputs
from hpcserve.protocol.body import parse_body
from hpcserve.protocol.generate import GenerateBody
from hpcserve.server.generate import _Events
from hpcserve.tokenizer.tokenizer import Tokenizer


async def stream(served, body):
    response = await served.http.post("/generate", json={**body, "stream": True})
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_one_prompt(serve):
    async def scenario(served):
        body = {"text": "hey", "rid": "mine"}
        found = await served.post("/generate", body)
        assert found["text"] == "hey"
        assert found["output_ids"] == [*b"hey", 257]
        meta = found["meta_info"]
        assert meta["id"] == "mine"
        assert meta["finish_reason"] == {"type": "stop", "matched": 257}
        assert (meta["prompt_tokens"], meta["completion_tokens"], meta["cached_tokens"]) == (
            3,
            4,
            3,
        )
        assert 0 < meta["e2e_latency"] < 10
        put = await served.http.put("/generate", json={"input_ids": [65]})
        assert put.json()["text"] == "A"

    serve(scenario)


def test_default_length_and_reason(serve):
    async def scenario(served):
        found = await served.post("/generate", {"text": "a" * 200})
        assert found["meta_info"]["finish_reason"] == {"type": "length", "length": 128}

    serve(scenario)


def test_lists(serve):
    async def scenario(served):
        sampling = [{"max_new_tokens": 1}, {"max_new_tokens": 2, "n": 2}]
        found = await served.post(
            "/generate", {"text": ["abc", "xyz"], "sampling_params": sampling}
        )
        assert [one["text"] for one in found] == ["a", "xy", "xy"]
        found = await served.post("/generate", {"text": ["abc"]})
        assert [one["text"] for one in found] == ["abc"]
        chunks = await stream(served, {"input_ids": [[65, 66], [67]]})
        last = {chunk["index"]: chunk["text"] for chunk in chunks}
        assert last == {0: "AB", 1: "C"}
        sampling = [{"max_new_tokens": 1, "n": 3}, {"max_new_tokens": 2}]
        chunks = await stream(served, {"text": ["abc", "xyz"], "sampling_params": sampling})
        last = {chunk["index"]: chunk["text"] for chunk in chunks}
        assert last == {0: "a", 1: "a", 2: "a", 3: "xy"}

    serve(scenario)


def test_stream_grows_from_the_beginning(serve):
    async def scenario(served):
        chunks = await stream(served, {"text": "hé", "sampling_params": {"temperature": 0}})
        # News that come faster than they are sent share an event.
        texts = [chunk["text"] for chunk in chunks]
        assert texts[-1] == "hé" and all(b.startswith(a) for a, b in pairwise(texts))
        assert chunks[-1]["output_ids"] == [*"hé".encode(), 257]
        assert chunks[-1]["meta_info"]["completion_tokens"] == 4

    serve(scenario, step_delay_s=0.03)


def test_every_event_has_the_answer_from_its_beginning(tmp_path):
    tokenizer = Tokenizer.load(write_byte_tokenizer(tmp_path))
    body = parse_body(GenerateBody, {"text": "x", "return_logprob": True})
    prompts = generate_inputs(body, tokenizer)
    written = _Events(body, prompts, SimpleNamespace(tokenizer=tokenizer))
    processor = OutputProcessor()
    request = OpenRequest("name", [1], prompts[0].params, tokenizer, streams=True)
    [answer] = processor.open(request)
    found = []
    for number, token_id in enumerate("hé".encode()):
        ended = [FinishedRequest(answer.request_id, "length", None, 0)] if number == 2 else []
        logprobs = [TokenLogprobs(-0.5, [], [])]
        step = EngineCoreOutputs([answer.request_id], [token_id], ended, logprobs)
        processor.process(step)
        if (news := request.take()) is not None:
            found.append(json.loads(written.write(0, news).removeprefix(b"data: ")))
    assert [one["text"] for one in found] == ["h", "hé"]
    assert [one["output_ids"] for one in found] == [[*b"h"], [*"hé".encode()]]
    assert [len(one["meta_info"]["output_token_logprobs"]) for one in found] == [1, 3]
    ends = [one["meta_info"]["finish_reason"] for one in found]
    assert ends == [None, {"type": "length", "length": 3}]


def test_logprobs(serve):
    async def scenario(served):
        body = {
            "text": "abc",
            "sampling_params": {"max_new_tokens": 2},
            "return_logprob": True,
            "top_logprobs_num": 1,
            "logprob_start_len": 1,
            "return_text_in_logprobs": True,
        }
        meta = (await served.post("/generate", body))["meta_info"]
        assert meta["output_token_logprobs"] == [[-0.5, 97, "a"], [-0.5, 98, "b"]]
        assert meta["output_top_logprobs"][0] == [[-0.5, 97, "a"]]
        assert meta["input_token_logprobs"] == [[-0.5, 98, "b"], [-0.5, 99, "c"]]
        last = (await stream(served, body))[-1]["meta_info"]
        assert last["output_token_logprobs"] == meta["output_token_logprobs"]
        assert last["input_token_logprobs"] == meta["input_token_logprobs"]
        body |= {"logprob_start_len": 0, "return_text_in_logprobs": False}
        meta = (await served.post("/generate", body))["meta_info"]
        assert meta["input_token_logprobs"][0] == [None, 97, None]
        body["logprob_start_len"] = -1
        assert "input_token_logprobs" not in (await served.post("/generate", body))["meta_info"]

    serve(scenario)


def test_the_prompt_alone(serve):
    """What SGLang's clients ask to have texts scored."""

    async def scenario(served):
        body = {
            "text": ["abc", "de"],
            "sampling_params": {"max_new_tokens": 0},
            "return_logprob": True,
            "logprob_start_len": 0,
        }
        whole = await served.post("/generate", body)
        streamed = {chunk["index"]: chunk for chunk in await stream(served, body)}
        for found in (whole, streamed):
            for place, text in enumerate(body["text"]):
                one, meta = found[place], found[place]["meta_info"]
                assert (one["text"], one["output_ids"], meta["completion_tokens"]) == ("", [], 0)
                assert meta["finish_reason"] == {"type": "length", "length": 0}
                assert meta["output_token_logprobs"] == []
                assert [entry[1] for entry in meta["input_token_logprobs"]] == list(text.encode())
        # Of several prompts only those that ask for it.
        mixed = [{"max_new_tokens": 0}, {"max_new_tokens": 1}]
        found = await served.post("/generate", {**body, "sampling_params": mixed})
        assert [one["text"] for one in found] == ["", "d"]

    serve(scenario)


def test_abort_by_rid(serve, until):
    async def scenario(served):
        endless = {"text": "a", "sampling_params": {"ignore_eos": True, "max_new_tokens": 4000}}
        one = asyncio.create_task(served.post("/generate", {**endless, "rid": "one"}))
        two = asyncio.create_task(served.post("/generate", endless))
        await until(lambda: len(served.core.seen) == 2)
        assert await served.post("/abort_request", {"rid": "one"}) == {"num_aborted": 1}
        assert (await one)["meta_info"]["finish_reason"] == {"type": "abort"}
        assert await served.post("/abort_request", {"rid": "one"}) == {"num_aborted": 0}
        assert await served.post("/abort_request", {"abort_all": True}) == {"num_aborted": 1}
        assert (await two)["meta_info"]["finish_reason"] == {"type": "abort"}
        await served.emptied()

    serve(scenario, step_delay_s=0.002)


def test_errors(serve):
    async def scenario(served):
        for body, text in [
            ({}, "either text or input_ids"),
            ({"text": "a", "sampling_params": {"json_schema": "{"}}, "json_schema"),
            ({"text": "a" * 5000}, "4096"),
            ({"input_ids": [5000]}, "5000"),
        ]:
            found = await served.post("/generate", body, expect=400)
            assert text in found["error"]["message"]

    serve(scenario)
