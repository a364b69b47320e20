"""What stands on the connection, byte by byte."""

import asyncio
import contextlib
import json
import shutil
import subprocess
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

ENDLESS = {"ignore_eos": True, "stream": True}


def request(path, body, version="1.1", extra=""):
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/{version}\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n{extra}\r\n"
    )
    return head.encode() + data


@asynccontextmanager
async def connect(served):
    where = urlsplit(served.url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def read_response(reader):
    """(status line, headers, body), with every chunk checked for its length and its end."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    if headers.get("transfer-encoding") != "chunked":
        return head[0], headers, await reader.readexactly(int(headers["content-length"]))
    body = b""
    while True:
        size = int(await reader.readuntil(b"\r\n"), 16)
        piece = await reader.readexactly(size + 2)
        assert piece.endswith(b"\r\n")
        if size == 0:
            return head[0], headers, body
        body += piece[:-2]


def text_of(body):
    lines = body.decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    return "".join(choice["text"] for event in events for choice in event["choices"])


def test_chunks_are_valid_and_the_connection_is_kept(serve):
    async def scenario(served):
        async with connect(served) as (reader, writer):
            for text in ("abc", "défg", "x" * 200):
                writer.write(
                    request("/v1/completions", {"prompt": text, "max_tokens": 300, "stream": True})
                )
                status, headers, body = await read_response(reader)
                assert status == "HTTP/1.1 200 OK"
                assert headers["content-type"] == "text/event-stream; charset=utf-8"
                assert text_of(body) == text
            writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await read_response(reader))[0] == "HTTP/1.1 200 OK"
            writer.close()

    serve(scenario, real=True)


def test_pipelined_requests_are_answered_in_order(serve):
    async def scenario(served):
        async with connect(served) as (reader, writer):
            bodies = [{"prompt": text, "stream": True} for text in ("first", "second")]
            plain = {"prompt": "third"}
            writer.write(b"".join(request("/v1/completions", body) for body in [*bodies, plain]))
            assert text_of((await read_response(reader))[2]) == "first"
            assert text_of((await read_response(reader))[2]) == "second"
            whole = json.loads((await read_response(reader))[2])
            assert whole["choices"][0]["text"] == "third"
            writer.close()

    serve(scenario, real=True, step_delay_s=0.002)


@pytest.mark.parametrize("num_pipelined", [1, 3])
def test_leaving_aborts_also_behind_a_pipelined_request(serve, num_pipelined):
    async def scenario(served):
        async with connect(served) as (reader, writer):
            body = {"prompt": "a", "max_tokens": 3000, **ENDLESS}
            writer.write(request("/v1/completions", body) * num_pipelined)
            await reader.readuntil(b"data: ")
            assert served.client.num_open == 1
            writer.close()
            await served.emptied()

    serve(scenario, real=True, step_delay_s=0.005)


def test_headers_without_end_are_cut_off(serve):
    async def scenario(served):
        async with connect(served) as (reader, writer):
            # A long one is taken, also behind another request.
            long = f"X-Long: {'a' * 60_000}\r\n"
            for _ in range(2):
                writer.write(request("/v1/completions", {"prompt": "abc"}, extra=long))
                assert (await read_response(reader))[0] == "HTTP/1.1 200 OK"
            writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n")
            sent = 0
            with contextlib.suppress(ConnectionError):
                while not writer.is_closing() and not reader.at_eof():
                    writer.write(b"X-More: " + b"a" * 10_000 + b"\r\n")
                    await writer.drain()
                    await asyncio.sleep(0)  # whatever comes is read
                    sent += 10_010
                    assert sent < 100 << 20
        assert (await served.http.get("/health")).status_code == 200

    serve(scenario, real=True)


def test_the_end_of_headers_is_no_limit_for_a_body_behind_it(serve):
    async def scenario(served):
        async with connect(served) as (reader, writer):
            data = request("/v1/completions", {"prompt": "a" * 1_000_000})
            writer.write(data[:30])
            await writer.drain()
            await asyncio.sleep(0.05)
            writer.write(data[30:])
            status, _, body = await read_response(reader)
            assert status == "HTTP/1.1 400 Bad Request"
            assert json.loads(body)["error"]["code"] == "context_length_exceeded"

    serve(scenario, real=True)


def test_connection_close(serve):
    async def scenario(served):
        async with connect(served) as (reader, writer):
            body = {"prompt": "abc", "stream": True}
            writer.write(request("/v1/completions", body, extra="Connection: close\r\n"))
            _, headers, answer = await read_response(reader)
            assert headers["connection"] == "close"
            assert text_of(answer) == "abc"
            assert await reader.read() == b""
            writer.close()

    serve(scenario, real=True)


def test_a_slow_reader_holds_nothing_up_and_loses_nothing(serve):
    async def scenario(served):
        async with connect(served) as (reader, writer):
            writer.transport.pause_reading()
            # Long answers from their beginning each time: megabytes, more than any buffer takes.
            params = {"max_new_tokens": 2500, "ignore_eos": True}
            text = "".join(chr(97 + number % 26) for number in range(1000))
            body = {"text": text, "stream": True, "sampling_params": params}
            writer.write(request("/generate", body))
            while served.client.num_open == 0:
                await asyncio.sleep(0.01)
            quick = await served.post("/generate", {"text": "quick"})
            assert quick["text"] == "quick"
            while served.client.num_open:
                await asyncio.sleep(0.01)
            writer.transport.resume_reading()
            events = (await read_response(reader))[2].decode().split("\n\n")
            assert events[-2] == "data: [DONE]"
            last = json.loads(events[-3].removeprefix("data: "))
            assert last["text"] == (text * 3)[:2500]
            # What came while nobody read was joined.
            assert len(events) < 2000
            writer.close()

    serve(scenario, real=True)


def test_a_slow_reader_that_leaves(serve):
    async def scenario(served):
        async with connect(served) as (_, writer):
            writer.transport.pause_reading()
            params = {"max_new_tokens": 3000, "ignore_eos": True}
            body = {"text": "a" * 1000, "stream": True, "sampling_params": params}
            writer.write(request("/generate", body))
            while served.client.num_open == 0:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            writer.transport.abort()
            await served.emptied()

    serve(scenario, real=True, step_delay_s=0.001)


def test_errors_after_the_first_byte_are_events(serve):
    async def scenario(served):
        async with connect(served) as (reader, writer):
            writer.write(request("/v1/completions", {"prompt": "a", "max_tokens": 3000, **ENDLESS}))
            status, _, body = await read_response(reader)
            assert status == "HTTP/1.1 200 OK"
            *_, last, done, rest = body.decode().split("\n\n")
            assert "told to die" in json.loads(last.removeprefix("data: "))["error"]["message"]
            assert (done, rest) == ("data: [DONE]", "")
            writer.close()

    serve(scenario, real=True, die_after_steps=20)


def test_a_bug_in_the_format_cuts_the_connection(serve, monkeypatch):
    def broken(self, delta, logprobs):
        raise ZeroDivisionError("a bug")

    async def scenario(served):
        monkeypatch.setattr(
            "hpcserve.protocol.completion_stream.CompletionAnswerStream.write", broken
        )
        async with connect(served) as (reader, writer):
            writer.write(request("/v1/completions", {"prompt": "a", "max_tokens": 3000, **ENDLESS}))
            with pytest.raises(asyncio.IncompleteReadError):
                await read_response(reader)
            await served.emptied()
            writer.close()

    serve(scenario, real=True, step_delay_s=0.002)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(serve):
    async def scenario(served):
        body = json.dumps({"prompt": "hello", "stream": True})
        command = ["curl", "-sS", "--fail", "-N", "-d", body, f"{served.url}/v1/completions"]
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, timeout=60, check=True
        )
        assert text_of(done.stdout.encode()) == "hello"

    serve(scenario, real=True)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_the_usage_counts_every_token_of_a_stream(serve, path):
    async def scenario(served):
        async with connect(served) as (reader, writer):
            fields = {"max_tokens": 40, "stream": True, "ignore_eos": True}
            fields["stream_options"] = {"include_usage": True}
            asked = {"prompt": "some text"}
            if "chat" in path:
                asked = {"messages": [{"role": "user", "content": "some text"}]}
            writer.write(request(path, {**asked, **fields}))
            _, _, body = await read_response(reader)
            *_, last, done, end = body.decode().split("\n\n")
            assert (done, end) == ("data: [DONE]", "")
            usage = json.loads(last.removeprefix("data: "))["usage"]
            assert usage["completion_tokens"] == 40

    serve(scenario, real=True, step_delay_s=0.003)
