"""A client process: `python -m hpcserve.bench.client_process`, started by client_pool.py.

Frames (4 bytes of length, then msgpack) come on standard input: a ClientOrder, then the start
time. On standard output go ClientReady, some ClientProgress, and ClientResult.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import struct
import sys
import time
from typing import BinaryIO

import msgspec
import uvloop

from hpcserve.bench.completion import RequestStyle
from hpcserve.bench.connection import Target
from hpcserve.bench.drive import Driver
from hpcserve.bench.record import RequestRecord
from hpcserve.bench.request import BenchRequest

_LENGTH = struct.Struct("<I")
_PROGRESS_PERIOD_S = 0.5


class ClientOrder(msgspec.Struct):
    """requests[i] is the run's request number indices[i]."""

    base_url: str
    style: RequestStyle
    requests: list[BenchRequest]
    indices: list[int]
    concurrency: int
    arrivals: bool
    timeout_s: float
    keep_text: bool


class ClientReady(msgspec.Struct, tag=True):
    """error: why no connection could be opened, "" where all are open."""

    error: str = ""


class ClientProgress(msgspec.Struct, tag=True):
    num_done: int
    num_chunks: int


class ClientResult(msgspec.Struct, tag=True):
    """cpu_s: processor seconds of this process during the run, which took wall_s.

    num_reads: how often the socket had data: fewer reads than chunks mean that chunks queued.
    """

    records: list[RequestRecord]
    cpu_s: float
    wall_s: float
    num_reads: int


ClientMessage = ClientReady | ClientProgress | ClientResult


def frame(message: object) -> bytes:
    encoded = msgspec.msgpack.encode(message)
    return _LENGTH.pack(len(encoded)) + encoded


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    """The next message, still encoded. Raises asyncio.IncompleteReadError at the end."""
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    return await reader.readexactly(length)


def main() -> None:
    _raise_file_limit()
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    order = msgspec.msgpack.decode(_read(stdin), type=ClientOrder)
    uvloop.run(_run(order, stdin, stdout))


async def _run(order: ClientOrder, stdin: BinaryIO, stdout: BinaryIO) -> None:
    driver = Driver(
        Target.parse(order.base_url),
        order.style,
        order.requests,
        order.indices,
        concurrency=order.concurrency,
        arrivals=order.arrivals,
        timeout_s=order.timeout_s,
        keep_text=order.keep_text,
    )
    try:
        await driver.prepare()
    except OSError as error:
        _write(stdout, ClientReady(str(error)))
        return
    # A collection in the middle of a run would look like a stall of the server.
    gc.collect()
    gc.freeze()
    gc.disable()
    _write(stdout, ClientReady())
    start = msgspec.msgpack.decode(_read(stdin), type=float)
    cpu, wall = time.process_time(), time.monotonic()
    reporter = asyncio.create_task(_report(driver, stdout))
    await driver.run(start)
    reporter.cancel()
    cpu_s, wall_s = time.process_time() - cpu, time.monotonic() - wall
    _write(stdout, ClientResult(driver.records, cpu_s, wall_s, driver.num_reads))


async def _report(driver: Driver, stdout: BinaryIO) -> None:
    while True:
        await asyncio.sleep(_PROGRESS_PERIOD_S)
        done = [record for record in driver.records if record.end_s >= 0]
        chunks = sum(len(record.chunk_times) for record in done) // 8
        _write(stdout, ClientProgress(len(done), chunks))


def _raise_file_limit() -> None:
    """Every stream is an open file, and the usual soft limit is 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _read(stdin: BinaryIO) -> bytes:
    head = stdin.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        os._exit(1)  # whoever ordered this is gone
    return stdin.read(_LENGTH.unpack(head)[0])


def _write(stdout: BinaryIO, message: ClientMessage) -> None:
    stdout.write(frame(message))
    stdout.flush()


if __name__ == "__main__":
    main()
