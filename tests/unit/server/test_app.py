import asyncio
import re
from pathlib import Path

import pytest

from hpcserve import __version__


def test_models(serve):
    async def scenario(served):
        [card] = (await served.http.get("/v1/models")).json()["data"]
        assert (card["id"], card["object"], card["max_model_len"]) == ("nice", "model", 4096)
        for name in ("nice", "byte-model", served.client.config.model.model, "default"):
            assert (await served.http.get(f"/v1/models/{name}")).json() == card
            await served.post("/v1/completions", {"model": name, "prompt": "a"})
        missing = await served.http.get("/v1/models/other")
        assert missing.status_code == 404
        assert missing.json()["error"]["code"] == "model_not_found"

    serve(scenario, server={"served_model_name": "nice"})


def test_information(serve):
    async def scenario(served):
        for path in ("/get_model_info", "/model_info"):
            info = (await served.http.get(path)).json()
            assert info.keys() == {"model_path", "tokenizer_path", "is_generation"}
            assert info["model_path"].endswith("byte-model")
        for path in ("/get_server_info", "/server_info"):
            info = (await served.http.get(path)).json()
            assert info["engine"]["context_length"] == 4096
            assert info["page_size"] == 16
            assert info["load"]["num_running"] == 0
        for path in ("/load", "/v1/loads"):
            assert (await served.http.get(path)).json()["num_total_pages"] == 4096
        assert (await served.http.get("/version")).json() == {"version": __version__}

    serve(scenario)


def test_health(serve):
    async def scenario(served):
        for path in ("/health", "/ping", "/health_generate"):
            assert (await served.http.get(path)).status_code == 200
        assert (await served.http.head("/health")).status_code == 200  # as some balancers ask
        assert len(served.core.seen) == 1
        await served.client.drain(1)
        for path in ("/health", "/health_generate"):
            assert (await served.http.get(path)).status_code == 503

    serve(scenario)


@pytest.mark.parametrize("patience_s", [60.0, 0.0])
def test_a_busy_engine_is_healthy(serve, until, monkeypatch, patience_s):
    """Others get tokens, even where a request of its own is refused for the length of the queue."""
    monkeypatch.setattr("hpcserve.server.health._OTHERS_S", patience_s)

    async def scenario(served):
        endless = {"text": "a", "sampling_params": {"ignore_eos": True, "max_new_tokens": 4000}}
        running = asyncio.create_task(served.http.post("/generate", json=endless))
        await until(lambda: served.core.num_output_tokens)
        await served.post("/generate", {"text": "a"}, expect=503)
        num_seen = len(served.core.seen)
        assert (await served.http.get("/health_generate")).status_code == 200
        assert (await served.http.get("/health")).status_code == 200
        assert len(served.core.seen) == num_seen + (not patience_s)
        await served.post("/abort_request", {"abort_all": True})
        await running

    serve(scenario, max_queued=1, step_delay_s=0.02)


def test_an_engine_that_makes_no_token_is_not(serve, monkeypatch):
    monkeypatch.setattr("hpcserve.server.health._GENERATE_TIMEOUT_S", 0.3)

    async def scenario(served):
        answer = await served.http.get("/health_generate")
        assert answer.status_code == 503
        assert "no token came" in answer.json()["error"]["message"]
        assert (await served.http.get("/health")).status_code == 200

    # A queue that is full of nothing: as if all that runs hung.
    serve(scenario, max_queued=0)


def test_errors_name_the_field_that_the_prompt_came_from(serve):
    async def scenario(served):
        def chat(text):
            return {"messages": [{"role": "user", "content": text}]}

        long, far_too_long = "a" * 5000, "a" * 50_000
        for path, body, field in [
            ("/v1/chat/completions", chat(long), "messages"),
            ("/v1/chat/completions", chat(far_too_long), "messages"),
            ("/v1/chat/completions", {**chat("a"), "max_tokens": 5000}, "messages"),
            ("/v1/completions", {"prompt": long}, "prompt"),
            ("/v1/completions", {"prompt": far_too_long}, "prompt"),
            ("/v1/completions", {"prompt": [5000]}, "prompt"),
            ("/generate", {"text": long}, "text"),
            ("/generate", {"text": far_too_long}, "text"),
            ("/generate", {"text": ""}, "text"),
            ("/generate", {"input_ids": [1] * 5000}, "input_ids"),
            ("/generate", {"input_ids": [5000]}, "input_ids"),
        ]:
            for stream in (False, True):
                found = await served.post(path, {**body, "stream": stream}, expect=400)
                assert found["error"]["param"] == field, (path, found)
                assert not found["error"]["message"].startswith("prompt:") or field == "prompt"

    serve(scenario)


def test_flush(serve):
    async def scenario(served):
        assert (await served.http.post("/flush_cache")).status_code == 200
        assert served.core.num_flushes == 1

    serve(scenario)


def test_tokenize(serve):
    async def scenario(served):
        found = await served.post("/tokenize", {"prompt": "hé"})
        assert found == {"tokens": list("hé".encode()), "count": 3, "max_model_len": 4096}
        several = await served.post("/tokenize", {"prompt": ["a", "bc"]})
        assert (several["tokens"], several["count"]) == ([[97], [98, 99]], [1, 2])
        chat = {"messages": [{"role": "user", "content": "x"}], "add_generation_prompt": False}
        assert (await served.post("/tokenize", chat))["tokens"][0] == 256
        await served.post("/tokenize", {}, expect=400)
        for name in ("messages", "tools", "add_generation_prompt"):
            found = await served.post(
                "/tokenize", {**chat, "chat_template_kwargs": {name: 1}}, expect=400
            )
            assert name in found["error"]["message"]
        chat["chat_template_kwargs"] = {"self": 1}
        await served.post("/tokenize", chat)
        assert (await served.post("/detokenize", {"tokens": [104, 105]}))["text"] == "hi"
        assert (await served.post("/detokenize", {"tokens": [[104], [105]]}))["text"] == ["h", "i"]
        await served.post("/detokenize", {"tokens": [-1]}, expect=400)

    serve(scenario)


def test_malformed_requests(serve):
    async def scenario(served):
        for path in ("/v1/chat/completions", "/v1/completions", "/generate", "/tokenize"):
            found = await served.http.post(path, content=b'{"prompt": ')
            assert found.status_code == 400
            assert "no valid JSON" in found.json()["error"]["message"]
            # As curl -d sends it, without a content type for JSON.
        header = {"content-type": "application/x-www-form-urlencoded"}
        found = await served.http.post("/generate", content=b'{"text": "a"}', headers=header)
        assert found.json()["text"] == "a"
        assert (await served.http.get("/nowhere")).json()["error"]["message"].startswith("GET /now")
        wrong = await served.http.get("/generate")
        assert wrong.status_code == 405
        assert "POST" in wrong.headers["allow"]  # RFC 9110, 15.5.6
        assert (await served.http.get("/openapi.json")).status_code == 200

    serve(scenario)


def test_a_part_of_a_path_that_is_wrong(serve):
    async def scenario(served):
        for path in ("/replicas/first/drain", "/replicas/1.5/resume"):
            found = await served.post(path, {}, expect=400)
            assert set(found["error"]) == {"message", "type", "param", "code"}
            assert found["error"]["param"] == "index"

    serve(scenario)


def test_api_key(serve):
    async def scenario(served):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "schlüssel"}):
            raw = {name: value.encode() for name, value in headers.items()}
            found = await served.http.get("/v1/models", headers=raw)
            assert found.status_code == 401
            assert found.json()["error"]["code"] == "invalid_api_key"
        for scheme in ("Bearer", "bearer"):  # its case does not matter (RFC 9110, 11.1)
            right = {"Authorization": f"{scheme} schlüssel".encode()}
            assert (await served.http.get("/v1/models", headers=right)).status_code == 200
        assert (await served.http.get("/health")).status_code == 200

    serve(scenario, server={"api_key": "schlüssel"})


def test_full_queue(serve, until):
    async def scenario(served):
        endless = {"text": "a", "sampling_params": {"ignore_eos": True, "max_new_tokens": 4000}}
        posts = [
            asyncio.ensure_future(served.http.post("/generate", json=endless)) for _ in "12345"
        ]
        await until(lambda: sum(post.done() for post in posts) == 3)
        for refused in (post.result() for post in posts if post.done()):
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "queue_full"
            assert refused.headers["retry-after"] == "1"
        served.client.abort_all()
        assert sorted([(await post).status_code for post in posts]) == [200, 200, 503, 503, 503]

    serve(scenario, max_queued=2, step_delay_s=0.02)


@pytest.mark.parametrize("streams", [False, True])
def test_dead_engine(serve, streams):
    async def scenario(served):
        body = {"text": "a" * 100, "stream": streams}
        found = await served.http.post("/generate", json=body)
        assert "the engine is gone (core): told to die" in found.text
        if streams:  # it had begun: the error is an event
            assert found.text.rstrip().endswith("data: [DONE]")
        else:
            assert found.status_code == 503
        for path in ("/health", "/v1/loads", "/health_generate"):
            after = await served.http.get(path)
            assert after.status_code == 503
            assert after.json()["error"]["code"] == "engine_dead"

    serve(scenario, die_after_steps=5)


def test_what_a_request_leaves_out_comes_from_the_model(serve, tmp_path):
    folder = tmp_path / "byte-model"
    folder.mkdir()
    (folder / "generation_config.json").write_text('{"temperature": 0.25, "top_k": 7}')

    async def scenario(served):
        def last():
            params = served.core.seen[-1].params
            return params.temperature, params.top_k, params.top_p

        messages = [{"role": "user", "content": "a"}]
        await served.post("/v1/chat/completions", {"messages": messages})
        assert last() == (0.25, 7, 1.0)
        await served.post("/v1/completions", {"prompt": "a", "temperature": 0, "top_p": 0.5})
        assert last() == (0.0, 7, 0.5)
        # SGLang's own API has defaults of its own.
        await served.post("/generate", {"text": "a"})
        assert last() == (1.0, -1, 1.0)

    serve(scenario)


def test_the_document_names_every_path_and_no_other(serve):
    text = (Path(__file__).parents[3] / "docs" / "http-api.md").read_text(encoding="utf-8")
    table = text.split("## What there is")[1].split("##")[0]
    documented = {
        re.sub(r"\{.*?\}", "{}", path) for path in re.findall(r"(?:GET|POST) (/[\w/{}]+)", table)
    }

    async def scenario(served):
        paths = (await served.http.get("/openapi.json")).json()["paths"]
        there = {re.sub(r"\{.*?\}", "{}", path) for path in paths}
        assert documented - {"/docs", "/openapi"} == there - {"/openapi"}

    serve(scenario)
