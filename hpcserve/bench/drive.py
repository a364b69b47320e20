"""The load of one client process: closed loop or arrivals, over its own connections."""

from __future__ import annotations

import asyncio
import time
from collections import deque

from hpcserve.bench.completion import RequestStyle, encode, fill_record
from hpcserve.bench.connection import Connection, ConnectionBrokenError, Response, Target
from hpcserve.bench.record import RequestRecord
from hpcserve.bench.request import BenchRequest, chains_of
from hpcserve.bench.sse import SSEReader

#: How many connections are opened at once before the start; a server's accept queue is finite.
_OPEN_TOGETHER = 64


class Driver:
    """Sends a share of the requests and keeps a record of each.

    concurrency: with `arrivals`, a cap on open requests (0: none); else the streams of the loop.
    Everything that costs time (encoding, connecting) is done by `prepare`.
    """

    def __init__(
        self,
        target: Target,
        style: RequestStyle,
        requests: list[BenchRequest],
        indices: list[int],
        *,
        concurrency: int,
        arrivals: bool,
        timeout_s: float,
        keep_text: bool,
    ) -> None:
        self._target, self._style = target, style
        self._requests, self._indices = requests, indices
        self._concurrency, self._arrivals = concurrency, arrivals
        self._timeout_s, self._keep_text = timeout_s, keep_text
        self._chains = deque(chains_of(requests))
        self._idle: list[Connection] = []
        self._start = 0.0
        self.records: list[RequestRecord] = []
        self.num_reads = 0

    async def prepare(self) -> None:
        """Encode every request and open the connections. Raises OSError where nobody listens."""
        self._payloads = [encode(one, self._style, self._target) for one in self._requests]
        wanted = len(self._chains)
        if self._concurrency:
            wanted = min(wanted, self._concurrency)
        elif any(one.arrival_s > 0 for one in self._requests):
            wanted = min(wanted, _OPEN_TOGETHER)
        while len(self._idle) < wanted:
            count = min(_OPEN_TOGETHER, wanted - len(self._idle))
            opening = [Connection.open(self._target) for _ in range(count)]
            self._idle += await asyncio.gather(*opening)

    async def run(self, start: float) -> None:
        """Begin at `start` (time.monotonic) and return when every request has ended."""
        self._start = start
        await asyncio.sleep(max(0.0, start - time.monotonic()))
        if self._arrivals:
            await self._follow_arrivals()
        else:
            await asyncio.gather(*(self._stream() for _ in range(self._concurrency)))
        for connection in self._idle:
            self._retire(connection)

    async def _stream(self) -> None:
        """One stream of the closed loop: a chain after the other."""
        while self._chains:
            await self._run_chain(self._chains.popleft(), time.monotonic() - self._start)

    async def _follow_arrivals(self) -> None:
        cap = asyncio.Semaphore(self._concurrency) if self._concurrency else None
        due = sorted(self._chains, key=lambda chain: self._requests[chain[0]].arrival_s)
        tasks = []
        for chain in due:
            arrival_s = self._requests[chain[0]].arrival_s
            wait = self._start + arrival_s - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            if cap is not None:
                await cap.acquire()
            tasks.append(asyncio.create_task(self._run_chain(chain, arrival_s)))
            if cap is not None:
                tasks[-1].add_done_callback(lambda _: cap.release())
        await asyncio.gather(*tasks)

    async def _run_chain(self, chain: list[int], scheduled_s: float) -> None:
        for position in chain:
            think_s = self._requests[position].think_s
            if think_s:
                await asyncio.sleep(think_s)
                scheduled_s = time.monotonic() - self._start
            record = RequestRecord(self._indices[position], scheduled_s=scheduled_s)
            self.records.append(record)
            await self._run_one(position, record)
            scheduled_s = time.monotonic() - self._start

    async def _run_one(self, position: int, record: RequestRecord) -> None:
        sse = SSEReader(keep=self._keep_text) if self._style.stream else None
        response = Response(sse)
        broken = ""
        try:
            await self._exchange(self._payloads[position], record, response)
        except asyncio.TimeoutError:
            record.error = "timeout"
            record.error_text = f"no complete answer in {self._timeout_s:g} s"
        except OSError as error:
            broken = str(error) or type(error).__name__
        record.end_s = (response.end or time.monotonic()) - self._start
        if not record.error:
            fill_record(record, response, broken, keep_text=self._keep_text)
        times = record.times()
        for place, when in enumerate(times):
            times[place] = when - self._start
        record.chunk_times = times.tobytes()

    async def _exchange(self, payload: bytes, record: RequestRecord, response: Response) -> None:
        while True:
            connection = await self._connection()
            was_used = connection.num_exchanges > 0
            record.sent_s = time.monotonic() - self._start
            try:
                await asyncio.wait_for(connection.exchange(payload, response), self._timeout_s)
            except ConnectionBrokenError:
                self._retire(connection)
                # A server may close an idle connection at the very moment it is used again.
                if was_used and response.status == 0:
                    continue
                raise
            except asyncio.TimeoutError:
                self._retire(connection)
                raise
            if connection.is_open:
                self._idle.append(connection)
            else:
                self._retire(connection)
            return

    async def _connection(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
            self._retire(connection)
        return await Connection.open(self._target)

    def _retire(self, connection: Connection) -> None:
        self.num_reads += connection.num_reads
        connection.close()
