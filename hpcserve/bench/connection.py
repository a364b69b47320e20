"""One keep-alive HTTP/1.1 connection on a raw asyncio transport; httptools parses."""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import httptools

from hpcserve.bench.sse import SSEReader
from hpcserve.errors import UsageError


@dataclass(frozen=True)
class Target:
    """Where requests go. `prefix` is the path of the base URL, without a slash at its end."""

    host: str
    port: int
    tls: bool = False
    prefix: str = ""

    @classmethod
    def parse(cls, base_url: str) -> Target:
        """Raises UsageError for what is no http or https URL."""
        parts = urlsplit(base_url if "//" in base_url else f"http://{base_url}")
        try:
            port = parts.port
        except ValueError as error:
            raise UsageError(f"the URL {base_url!r}: {error}") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{base_url!r} is no URL like http://127.0.0.1:30000")
        tls = parts.scheme == "https"
        # Base URLs of OpenAI's clients end with /v1, others do not: take both.
        path = parts.path.rstrip("/").removesuffix("/v1")
        return cls(parts.hostname, port or (443 if tls else 80), tls, path)

    @property
    def url(self) -> str:
        """The base URL again, without /v1."""
        return f"{'https' if self.tls else 'http'}://{self._authority}{self.prefix}"

    @property
    def _authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def head(self, method: str, path: str, headers: dict[str, str], length: int) -> bytes:
        """The head of a request whose body has `length` bytes of JSON."""
        lines = [
            f"{method} {self.prefix}{path} HTTP/1.1",
            f"Host: {self._authority}",
            "Content-Type: application/json",
            f"Content-Length: {length}",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()


class Response:
    """What came back for one request. `status` is 0 until a head came."""

    __slots__ = ("body", "end", "sse", "status")

    def __init__(self, sse: SSEReader | None) -> None:
        self.status = 0
        self.sse = sse
        self.body: list[bytes] = []
        self.end = 0.0


class ConnectionBrokenError(ConnectionError):
    """The connection ended, or made no sense, before the response was complete."""


class Connection(asyncio.Protocol):
    """Runs one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._response: Response | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._streams = False
        self._now = 0.0
        self.num_reads = 0
        self.num_exchanges = 0

    @classmethod
    async def open(cls, target: Target) -> Connection:
        """Raises OSError where nobody listens."""
        context = ssl.create_default_context() if target.tls else None
        _, protocol = await asyncio.get_running_loop().create_connection(
            cls, target.host, target.port, ssl=context
        )
        return protocol

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def exchange(self, payload: bytes, response: Response) -> asyncio.Future[None]:
        """Send a whole request; the future is done when `response` is complete.

        It fails with ConnectionBrokenError; what came until then is in `response`.
        """
        waiter = asyncio.get_running_loop().create_future()
        self._waiter, self._response = waiter, response
        self._streams = False
        if self._transport is None:
            self._fail("the server closed the connection")
        else:
            self._transport.write(payload)
        return waiter

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    # ------------------------------------------------------------ asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._now = time.monotonic()
        self.num_reads += 1
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"no HTTP answer: {error}")
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._fail(f"the connection was lost: {exc}" if exc else "the server closed the connection")

    # ------------------------------------------------------------ httptools calls these

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self._streams = value.startswith(b"text/event-stream")

    def on_headers_complete(self) -> None:
        if self._response is not None:
            self._response.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        response = self._response
        if response is None:
            return
        if self._streams and response.sse is not None:
            response.sse.feed(body, self._now)
        else:
            response.body.append(body)

    def on_message_complete(self) -> None:
        response, waiter = self._response, self._waiter
        self._response = self._waiter = None
        self.num_exchanges += 1
        if not self._parser.should_keep_alive():
            self.close()
        if response is not None and waiter is not None:
            response.end = self._now
            if not waiter.done():
                waiter.set_result(None)

    def _fail(self, text: str) -> None:
        response, waiter = self._response, self._waiter
        self._response = self._waiter = None
        if response is not None and waiter is not None:
            response.end = time.monotonic()
            if not waiter.done():
                waiter.set_exception(ConnectionBrokenError(text))
