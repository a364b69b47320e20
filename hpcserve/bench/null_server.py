"""A server without a model: answers /v1/completions with tokens at a fixed pace.

For testing clients: what it does is known beforehand, so what a client measures can be checked,
and it is fast enough to find out how many chunks a client process can take.
`python -m hpcserve.bench.null_server` runs one as a process and prints its port.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import httptools

_HEAD = b"HTTP/1.1 %d OK\r\nContent-Type: %s\r\n"
_TEXT = b'{"id":"null","object":"text_completion","created":0,"model":"null","choices":[{"index":0,'
_CHUNK = _TEXT + b'"text":" tok","logprobs":null,"finish_reason":null}]}'
#: Bytes that may wait for a slow reader.
_FULL = 65536
_LAST = _TEXT + b'"text":" tok","logprobs":null,"finish_reason":"length"}]}'


@dataclass
class NullServer:
    """What it does to each completion, and what it saw.

    ttft_s, itl_s: when tokens come after the request; with itl_s 0, all open streams get one token
    each, over and over, as an engine without end would do it.  refuse_every: every n-th completion gets
    status 503.  break_every: every n-th stream is cut after two tokens.
    peak: most completions that were open at once.  seen: the bodies that came, where `keeps`.
    port: where it listens; several processes may share one.
    """

    ttft_s: float = 0.0
    itl_s: float = 0.0
    refuse_every: int = 0
    break_every: int = 0
    keeps: bool = True
    model: str = "null"
    num_open: int = 0
    peak: int = 0
    num_completions: int = 0
    num_flushes: int = 0
    paths: list[str] = field(default_factory=list)
    seen: list[dict[str, Any]] = field(default_factory=list)
    port: int = 0
    _flood: deque[_Stream] = field(default_factory=deque)
    _flooding: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Listen on `port` of this machine (0: a free one); gives the base URL."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: _Connection(self), "127.0.0.1", self.port, backlog=1024, reuse_port=True
        )
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield f"http://127.0.0.1:{self.port}"
        finally:
            server.close()

    def flood(self, stream: _Stream) -> None:
        """Give `stream` its tokens in turn with all others, as fast as it goes."""
        self._flood.append(stream)
        if self._flooding is None or self._flooding.done():
            self._flooding = asyncio.ensure_future(self._run_flood())

    async def _run_flood(self) -> None:
        while self._flood:
            for _ in range(len(self._flood)):
                stream = self._flood.popleft()
                if stream.write_next():
                    self._flood.append(stream)
            await asyncio.sleep(0)

    def answer(self, path: str) -> tuple[int, dict[str, Any]]:
        """Status and body of anything but a completion."""
        self.paths.append(path)
        if path == "/v1/models":
            return 200, {"object": "list", "data": [{"id": self.model, "object": "model"}]}
        if path == "/flush_cache":
            self.num_flushes += 1
            return 200, {}
        return 404, {"error": {"message": f"nothing at {path}"}}

    def fate(self) -> str:
        """What happens to the completion that just came: "", refuse or break."""
        self.num_completions += 1
        if self.refuse_every and self.num_completions % self.refuse_every == 0:
            return "refuse"
        if self.break_every and self.num_completions % self.break_every == 0:
            return "break"
        return ""


class _Stream:
    """A flooded stream: `done` is set when it has ended."""

    def __init__(self, transport: asyncio.Transport, pieces: Iterator[bytes]) -> None:
        self._transport, self._pieces = transport, pieces
        self.done = asyncio.Event()

    def write_next(self) -> bool:
        """False where that was all, or the reader is gone."""
        if self._transport.get_write_buffer_size() > _FULL:
            return True  # the reader is slow: it gets the next one later
        piece = None if self._transport.is_closing() else next(self._pieces, None)
        if piece is None:
            self.done.set()
            return False
        self._transport.write(piece)
        return True


class _Connection(asyncio.Protocol):
    def __init__(self, server: NullServer) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._body: list[bytes] = []
        self._path = ""
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._path = url.decode()

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        body = b"".join(self._body)
        self._body = []
        if self._path != "/v1/completions":
            self._send_json(*self._server.answer(self._path))
            return
        request = json.loads(body)
        if self._server.keeps:
            self._server.seen.append(request)
        self._task = asyncio.ensure_future(self._complete(request))

    async def _complete(self, request: dict[str, Any]) -> None:
        server = self._server
        fate = server.fate()
        if fate == "refuse":
            self._send_json(503, {"error": {"message": "the queue is full"}})
            return
        server.num_open += 1
        server.peak = max(server.peak, server.num_open)
        try:
            await self._answer(request, breaks=fate == "break")
        finally:
            server.num_open -= 1

    async def _answer(self, request: dict[str, Any], *, breaks: bool) -> None:
        count = request["max_tokens"]
        usage = {"prompt_tokens": len(request["prompt"]), "completion_tokens": count}
        if not request.get("stream"):
            await asyncio.sleep(self._server.ttft_s + self._server.itl_s * (count - 1))
            choice = {"index": 0, "text": " tok" * count, "finish_reason": "length"}
            self._send_json(200, {"choices": [choice], "usage": usage})
            return
        self._transport.write(
            _HEAD % (200, b"text/event-stream; charset=utf-8")
            + b"Transfer-Encoding: chunked\r\n\r\n"
        )
        pieces = _pieces(count, usage if request.get("stream_options") else None)
        if not self._server.itl_s and not breaks:
            await asyncio.sleep(self._server.ttft_s)
            stream = _Stream(self._transport, pieces)
            self._server.flood(stream)
            await stream.done.wait()
            return
        for number, piece in enumerate(pieces):
            if number < count:
                await asyncio.sleep(self._server.itl_s if number else self._server.ttft_s)
            self._transport.write(piece)
            if breaks and number == 1:
                self._transport.close()
                return

    def _send_json(self, status: int, body: dict[str, Any]) -> None:
        encoded = json.dumps(body).encode()
        head = _HEAD % (status, b"application/json") + b"Content-Length: %d\r\n\r\n" % len(encoded)
        self._transport.write(head + encoded)


def _pieces(count: int, usage: dict[str, int] | None) -> Iterator[bytes]:
    """The HTTP chunks of a stream: one per token, then what ends it."""
    yield from itertools.repeat(_sse(_CHUNK), count - 1)
    yield _sse(_LAST)
    if usage is not None:
        yield _sse(b'{"id":"null","choices":[],"usage":' + json.dumps(usage).encode() + b"}")
    yield _sse(b"[DONE]") + b"0\r\n\r\n"


def _sse(payload: bytes) -> bytes:
    event = b"data: " + payload + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(event), event)


async def _serve_forever(server: NullServer, *, until_eof: bool) -> None:
    async with server.serving():
        print(server.port, flush=True)
        if until_eof:
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        else:
            await asyncio.Event().wait()


def main() -> None:
    import uvloop

    parser = argparse.ArgumentParser(description="a server without a model")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ttft-s", type=float, default=0.0)
    parser.add_argument("--itl-s", type=float, default=0.0)
    parser.add_argument("--until-eof", action="store_true", help="end when standard input does")
    chosen = parser.parse_args()
    server = NullServer(chosen.ttft_s, chosen.itl_s, keeps=False, port=chosen.port)
    uvloop.run(_serve_forever(server, until_eof=chosen.until_eof))


if __name__ == "__main__":
    main()
