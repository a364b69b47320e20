"""HTTP itself: uvicorn around the application.

Importing this takes longest of all that the server needs, so run.py does it while the engine starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import uvicorn

from hpcserve import envs
from hpcserve.config.server import ServerConfig
from hpcserve.engine.client import EngineClient
from hpcserve.errors import EngineDeadError
from hpcserve.log import get_logger
from hpcserve.server.app import create_app
from hpcserve.server.wire import WireProtocol

if TYPE_CHECKING:
    from hpcserve.server.run import Shutdown

logger = get_logger(__name__)

BACKLOG = 2048
#: Longer than clients and proxies keep an idle connection (httpx: 5 s, most balancers: 60 s): whoever
#: closes first must not be we, or a request may meet a connection that is just being closed.
KEEP_ALIVE_S = 75
#: Seconds that connections get to take the last bytes of what was drained or aborted.
_LAST_BYTES_S = 3


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling, which would end the process by the signal."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve_client(
    client: EngineClient, options: ServerConfig, listener: socket.socket, shutdown: Shutdown
) -> None:
    """Answer requests until `shutdown` or the engine ends it.

    Raises EngineDeadError.
    """
    api_key = options.api_key or envs.HPCSERVE_API_KEY.get()
    app = create_app(client, dataclasses.replace(options, api_key=api_key))
    server = _Server(uvicorn_config(app))
    shutdown.serves(server, client)
    watch = asyncio.ensure_future(_stop_when_dead(client, server))
    await server.serve(sockets=[listener])
    watch.cancel()
    if client.dead is not None:
        raise EngineDeadError(str(client.dead))


async def _stop_when_dead(client: EngineClient, server: uvicorn.Server) -> None:
    await client.died.wait()
    logger.error("%s", client.dead)
    server.should_exit = True


def uvicorn_config(app: Any) -> uvicorn.Config:
    """Options of the HTTP server around `app`."""
    return uvicorn.Config(
        app,
        http=WireProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=_LAST_BYTES_S,
        timeout_keep_alive=KEEP_ALIVE_S,
    )
