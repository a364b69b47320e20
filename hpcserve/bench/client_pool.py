"""Starts the client processes, lets them begin together, and gathers their records."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from hpcserve.bench.client_process import (
    ClientMessage,
    ClientOrder,
    ClientProgress,
    ClientReady,
    ClientResult,
    frame,
    read_frame,
)
from hpcserve.bench.completion import RequestStyle
from hpcserve.bench.record import RequestRecord
from hpcserve.bench.request import BenchRequest, chains_of
from hpcserve.errors import EngineError

_MODULE = "hpcserve.bench.client_process"
#: From "all are ready" to the first request: the news must have reached every process.
_HEAD_START_S = 0.1

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Load:
    """How requests are sent.

    concurrency: streams of a closed loop, or, with arrivals, the most open requests (0: no limit).
    arrivals: follow the requests' arrival_s.
    """

    concurrency: int
    arrivals: bool
    timeout_s: float = 3600.0
    num_processes: int = 1
    keep_text: bool = False


@dataclass
class LoadResult:
    """records stand in the order of the requests.  cpu_s, wall_s: one per client process."""

    records: list[RequestRecord]
    cpu_s: list[float]
    wall_s: list[float]
    num_reads: int

    @property
    def cpu_shares(self) -> list[float]:
        """How much of a core each process used, 0 to 1."""
        return [cpu / wall for cpu, wall in zip(self.cpu_s, self.wall_s, strict=True)]


def run_load(
    base_url: str,
    style: RequestStyle,
    requests: list[BenchRequest],
    load: Load,
    on_progress: Progress | None = None,
) -> LoadResult:
    """Send all requests and wait for the last answer.

    on_progress: called with the number of finished requests.
    Raises EngineError where nobody listens at base_url, or a client process dies.
    """
    return asyncio.run(_run_load(base_url, style, requests, load, on_progress or (lambda _: None)))


async def _run_load(
    base_url: str,
    style: RequestStyle,
    requests: list[BenchRequest],
    load: Load,
    on_progress: Progress,
) -> LoadResult:
    clients: list[_Client] = []
    try:
        for order in split(base_url, style, requests, load):
            clients.append(await _Client.start(order))
        await asyncio.gather(*(client.wait_ready(base_url) for client in clients))
        start = time.monotonic() + _HEAD_START_S
        results = await asyncio.gather(
            *(
                client.run(start, lambda: on_progress(sum(one.num_done for one in clients)))
                for client in clients
            )
        )
    finally:
        for client in clients:
            await client.end()
    records = sorted((one for result in results for one in result.records), key=lambda r: r.index)
    return LoadResult(
        records,
        [result.cpu_s for result in results],
        [result.wall_s for result in results],
        sum(result.num_reads for result in results),
    )


def split(
    base_url: str, style: RequestStyle, requests: list[BenchRequest], load: Load
) -> list[ClientOrder]:
    """One order per process. A chat stays in one process; streams are spread evenly, and each
    process gets requests in proportion to its streams."""
    chains = chains_of(requests)
    streams = load.concurrency or len(chains)
    count = max(1, min(load.num_processes, streams, len(chains)))
    shares: list[list[int]] = [[] for _ in range(count)]
    for number, chain in enumerate(chains):
        shares[number % streams % count] += chain
    concurrencies = [
        load.concurrency // count + (place < load.concurrency % count) for place in range(count)
    ]
    return [
        ClientOrder(
            base_url,
            style,
            [requests[index] for index in share],
            share,
            concurrency,
            load.arrivals,
            load.timeout_s,
            load.keep_text,
        )
        for share, concurrency in zip(shares, concurrencies, strict=True)
    ]


class _Client:
    """One process and the pipes to it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._process = process
        self._stdin, self._stdout = process.stdin, process.stdout
        self._decoder: msgspec.msgpack.Decoder[ClientMessage] = msgspec.msgpack.Decoder(
            ClientMessage
        )
        self.num_done = 0

    @classmethod
    async def start(cls, order: ClientOrder) -> _Client:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            _MODULE,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=child_environment(),
        )
        client = cls(process)
        await client._send(order)
        return client

    async def wait_ready(self, base_url: str) -> None:
        message = await self._receive()
        if isinstance(message, ClientReady) and message.error:
            raise EngineError(
                f"no server answers at {base_url} ({message.error}); start one, or name another "
                "with --base-url"
            )

    async def run(self, start: float, on_progress: Callable[[], None]) -> ClientResult:
        await self._send(start)
        while True:
            message = await self._receive()
            if isinstance(message, ClientProgress):
                self.num_done = message.num_done
                on_progress()
            elif isinstance(message, ClientResult):
                return message

    async def end(self) -> None:
        """Let it end by itself where it is done, else end it."""
        self._stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), 1.0)
        except asyncio.TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    async def _send(self, message: object) -> None:
        self._stdin.write(frame(message))
        with contextlib.suppress(ConnectionError):  # it died; `_receive` will say so
            await self._stdin.drain()

    async def _receive(self) -> ClientMessage:
        try:
            return self._decoder.decode(await read_frame(self._stdout))
        except asyncio.IncompleteReadError:
            code = await self._process.wait()
            raise EngineError(
                f"a client process ended with exit code {code}; see its words above"
            ) from None


def child_environment() -> dict[str, str]:
    """The child finds the same hpcserve, from whatever folder this one was started."""
    root = str(Path(__file__).resolve().parents[2])
    given = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([root, given] if given else [root])
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
