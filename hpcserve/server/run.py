"""`hpcserve serve`: bind, start the engine, serve, drain."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import signal
import socket
from collections.abc import Coroutine, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from hpcserve import envs
from hpcserve.config.engine import EngineConfig
from hpcserve.config.server import ServerConfig
from hpcserve.engine.client import CORE_MODULE, EngineClient
from hpcserve.engine.model_folder import served_name
from hpcserve.engine.process_age import process_age_s
from hpcserve.errors import OutputError, PortInUseError, UsageError
from hpcserve.log import get_logger

if TYPE_CHECKING:
    import uvicorn

logger = get_logger(__name__)

_BACKLOG = 2048
INTERRUPTED = 130
#: The environment variable by which HTTP processes share their metrics; prometheus_client reads it
#: when it is imported.
METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
#: What a server of several HTTP processes makes of Ctrl-C and of SIGTERM for them.
FORWARDED = signal.SIGINT


def run_server(
    engine: EngineConfig, server: ServerConfig, *, core_module: str = CORE_MODULE
) -> int:
    """Serve until a signal ends it; returns the exit code.

    Ctrl-C or SIGTERM drains and gives 0; a second one ends at once and gives 130.
    Raises PortInUseError, what EngineClient.open raises, and EngineDeadError.
    """
    with ExitStack() as stack:
        listeners = [stack.enter_context(bind(server.host, server.port))]
        _publish(server.host, listeners[0])
        if server.api_workers == 1:
            return run_loop(_serve(engine, server, listeners[0], core_module))
        from hpcserve.server.frontends import serve_frontends

        port = listeners[0].getsockname()[1]
        # Closed only now: whoever else listens there was noticed.
        listeners.pop().close()
        for _ in range(server.api_workers):
            listeners.append(stack.enter_context(bind(server.host, port, shared=True)))
        return run_loop(serve_frontends(engine, server, listeners, core_module))


def run_loop(main: Coroutine[Any, Any, int]) -> int:
    """Run `main` on an event loop of its own, the fast kind where there is one."""
    loop = _new_event_loop()
    try:
        return loop.run_until_complete(main)
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    shared: several sockets may take the port, and the kernel spreads connections over them.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise UsageError(f"--host {host}: {error}") from error
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise PortInUseError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; choose another one "
            f"with --port (0 takes any free one)"
        ) from error
    return listener


def _publish(host: str, listener: socket.socket) -> None:
    """Tell the launcher where we listen: a port that was asked for as 0 is known only now."""
    path = envs.HPCSERVE_ENDPOINT_FILE.get()
    if path is None:
        return
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps({"host": host, "port": listener.getsockname()[1]}))
        temporary.replace(path)  # whole or not at all, for readers on other nodes
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


class Shutdown:
    """What signals do: before the server runs, cancel; then drain; then end at once."""

    def __init__(
        self,
        drain_timeout_s: float,
        numbers: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM),
    ) -> None:
        self._drain_timeout_s = drain_timeout_s
        self._starting: asyncio.Task[Any] | None = asyncio.current_task()
        self._draining: asyncio.Task[None] | None = None
        self._server: uvicorn.Server | None = None
        self._client: EngineClient | None = None
        self.interrupted = False
        loop = asyncio.get_running_loop()
        for number in numbers:
            loop.add_signal_handler(number, self._on_signal)

    def serves(self, server: uvicorn.Server, client: EngineClient) -> None:
        self._starting, self._server, self._client = None, server, client

    def _on_signal(self) -> None:
        if self._starting is not None:
            self.interrupted = True
            self._starting.cancel()
        elif self._draining is None:
            self._draining = asyncio.ensure_future(self._drain())
        elif self._server is not None and self._client is not None:
            self.interrupted = True
            self._client.abort_all()
            self._server.should_exit = self._server.force_exit = True

    async def _drain(self) -> None:
        if self._server is None or self._client is None:
            return
        if self._client.num_open:
            logger.info(
                "%d requests are running; waiting up to %g s for them (again to end at once)",
                self._client.num_open,
                self._drain_timeout_s,
            )
        num_aborted = await self._client.drain(self._drain_timeout_s)
        if num_aborted:
            logger.warning("aborted %d requests that took longer", num_aborted)
        self._server.should_exit = True


async def _serve(
    config: EngineConfig, options: ServerConfig, listener: socket.socket, core_module: str
) -> int:
    shutdown = Shutdown(options.drain_timeout_s)
    os.environ.pop(METRICS_FOLDER, None)  # another program's: its metrics are no place for ours
    try:
        opening = asyncio.ensure_future(EngineClient.open(config, module=core_module))
        await asyncio.sleep(0)  # the engine's process starts first
        http, client = await asyncio.gather(
            asyncio.to_thread(importlib.import_module, "hpcserve.server.http"), opening
        )
    except asyncio.CancelledError:
        if shutdown.interrupted:
            return INTERRUPTED
        raise
    async with client:
        logger.info("%s", startup_line(client))
        log_sampling_defaults(client)
        print(serving_line(options, listener, client.config), flush=True)
        await http.serve_client(client, options, listener, shutdown)
    return INTERRUPTED if shutdown.interrupted else 0


def startup_line(client: EngineClient) -> str:
    """Seconds from the start of this process, and what the engine's own took."""
    phases = ", ".join(f"{name} {took:.1f}" for name, took in client.ready.timings_s.items())
    return f"ready after {process_age_s():.1f} s (seconds in the engine: {phases})"


def log_sampling_defaults(client: EngineClient) -> None:
    """Say what requests get that do not choose it, if the model brings any of it."""
    if client.sampling_defaults:
        values = ", ".join(f"{name} {value}" for name, value in client.sampling_defaults.items())
        logger.info(
            "sampling defaults of the model: %s (--generation-config none drops them)", values
        )


def serving_line(options: ServerConfig, listener: socket.socket, config: EngineConfig) -> str:
    """What is printed once requests are taken."""
    name = served_name(config, options.served_model_name)
    return f"hpcserve serves {name} at {_url(options.host, listener)}"


def _url(host: str, listener: socket.socket) -> str:
    port = listener.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _new_event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # there is none for this platform
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
