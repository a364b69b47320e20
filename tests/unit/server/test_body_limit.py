"""Bodies that are too large: refused by what they say of themselves, or when they have come so far."""

import asyncio
import json

import pytest

LIMIT = {"max_body_bytes": 1000}
PATHS = ["/v1/chat/completions", "/v1/completions", "/generate", "/tokenize", "/start_profile"]


def body_of(size):
    head, tail = b'{"text": "', b'"}'
    return head + b"a" * (size - len(head) - len(tail)) + tail


async def in_pieces(data, size=100):
    for start in range(0, len(data), size):
        yield data[start : start + size]


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
def test_the_largest_body_is_taken_and_one_more_byte_is_not(serve, real, chunked):
    async def scenario(served):
        def content(size):
            return in_pieces(body_of(size)) if chunked else body_of(size)

        taken = await served.http.post("/generate", content=content(1000))
        assert taken.status_code == 200
        refused = await served.http.post("/generate", content=content(1001))
        assert refused.status_code == 413
        error = refused.json()["error"]
        assert (error["code"], error["type"]) == ("body_too_large", "invalid_request_error")
        assert "1,000" in error["message"] and "--max-body-bytes" in error["message"]
        assert ("1,001" in error["message"]) != chunked
        # The same connection goes on.
        assert (await served.http.post("/generate", content=content(900))).status_code == 200

    serve(scenario, real=real, server=LIMIT)


@pytest.mark.parametrize("path", PATHS)
def test_every_endpoint_with_a_body_has_the_limit(serve, path):
    async def scenario(served):
        for content in (body_of(5000), in_pieces(body_of(5000))):
            assert (await served.http.post(path, content=content)).status_code == 413

    serve(scenario, server=LIMIT)


def test_no_more_is_kept_of_a_body_than_the_limit(serve):
    """It never ends: the answer comes all the same."""

    async def scenario(served):
        host, _, port = served.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /generate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        piece = b"3e8\r\n" + b"a" * 1000 + b"\r\n"

        async def send_on():
            while True:
                writer.write(piece)
                await writer.drain()

        sending = asyncio.ensure_future(send_on())
        line = await reader.readline()
        assert line.split()[1] == b"413"
        sending.cancel()
        writer.close()

    serve(scenario, real=True, server=LIMIT)


def test_the_key_comes_first(serve):
    async def scenario(served):
        assert (await served.http.post("/generate", content=body_of(5000))).status_code == 401

    serve(scenario, server={**LIMIT, "api_key": "secret"})


def test_the_default_takes_long_prompts(serve):
    async def scenario(served):
        body = json.dumps({"text": "a" * (31 << 20)})
        refused = await served.http.post("/generate", content=body)
        assert refused.json()["error"]["code"] == "context_length_exceeded"
        assert (await served.http.post("/generate", content=b"a" * (33 << 20))).status_code == 413

    serve(scenario)
