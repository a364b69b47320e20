"""One address in front of the servers of a job: it stays while they come, go and come back.

Connections are passed on as they are, byte by byte, so whatever the servers speak works: there is
no HTTP here but for one answer, which says that no server is ready.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hpcserve.errors import HpcserveError
from hpcserve.log import get_logger

log = get_logger(__name__)

REFRESH_S = 2.0
_CONNECT_S = 5.0
_CHUNK = 1 << 16
_NOBODY = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 10\r\n"
    b"connection: close\r\n\r\n"
    b'{"error": {"message": "no server of this job is ready", "type": "overloaded_error", '
    b'"param": null, "code": "no_server"}}'
)


@dataclass(frozen=True)
class Backend:
    """A server that is ready now."""

    job_id: str
    address: str
    port: int


class Front:
    """find: the servers that are ready; it may block, and runs in a thread every two seconds.

    patience_s: how long a connection waits where there is none, such as during a requeue.
    """

    def __init__(self, find: Callable[[], Sequence[Backend]], patience_s: float = 30.0) -> None:
        self._find = find
        self._patience_s = patience_s
        self._backends: list[Backend] = []
        self._open: Counter[Backend] = Counter()
        self._tasks: set[asyncio.Future[Any]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    @contextlib.asynccontextmanager
    async def listening(self, host: str, port: int) -> AsyncIterator[asyncio.Server]:
        """Serve until the end of the block, which breaks what is open.

        Raises OSError for a port that is taken.
        """
        await self._refresh()
        server = await asyncio.start_server(self._on_connection, host, port)
        refreshing = asyncio.ensure_future(self._refresh_for_ever())
        try:
            yield server
        finally:
            server.close()
            refreshing.cancel()
            for writer in self._writers:
                writer.close()  # both directions of its connection then end by themselves
            await asyncio.wait({refreshing, *self._tasks}, timeout=_CONNECT_S)

    @property
    def num_ready(self) -> int:
        return len(self._backends)

    async def _refresh_for_ever(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_S)
            try:
                await self._refresh()
            except (HpcserveError, OSError) as error:
                log.warning("%s; the servers known so far stay", error)

    async def _refresh(self) -> None:
        found = list(await asyncio.to_thread(self._find))
        if set(found) != set(self._backends):
            names = ", ".join(f"{one.job_id} at {one.address}:{one.port}" for one in found)
            log.info("servers: %s", names or "none is ready")
        self._backends = found

    async def _on_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            chosen = await self._connect()
            if chosen is None:
                # What is unread when we close would break the answer off.
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(reader.read(_CHUNK), _CONNECT_S)
                writer.write(_NOBODY)
                await writer.drain()
                return
            backend, to_reader, to_writer = chosen
            self._writers.add(to_writer)
            try:
                await asyncio.gather(_pump(reader, to_writer), _pump(to_reader, writer))
            finally:
                self._open[backend] -= 1
                self._writers.discard(to_writer)
                to_writer.close()
        except OSError as error:
            log.debug("a connection broke: %s", error)
        finally:
            self._writers.discard(writer)
            writer.close()
            self._tasks.discard(task)

    async def _connect(
        self,
    ) -> tuple[Backend, asyncio.StreamReader, asyncio.StreamWriter] | None:
        """The server with the fewest connections that takes one more."""
        deadline = asyncio.get_running_loop().time() + self._patience_s
        while True:
            for backend in sorted(self._backends, key=lambda one: self._open[one]):
                self._open[backend] += 1
                opening = asyncio.open_connection(backend.address, backend.port)
                with contextlib.suppress(OSError, asyncio.TimeoutError):
                    return (backend, *await asyncio.wait_for(opening, _CONNECT_S))
                self._open[backend] -= 1
                log.warning("server %s takes no connection", backend.job_id)
                # Until it is found ready again.
                self._backends = [one for one in self._backends if one != backend]
            if asyncio.get_running_loop().time() > deadline:
                return None
            await asyncio.sleep(0.2)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until one side ends; its end is passed on, the other direction goes on."""
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
