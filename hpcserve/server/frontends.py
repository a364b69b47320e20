"""`--api-workers`: several HTTP processes on one port, all in front of the same engine.

This process starts the engine and the others, passes signals on, and starts one again that ended.
Each listens on a socket of its own that is open here too, so connections that wait survive it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import socket
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from typing import Any

from hpcserve.config.engine import EngineConfig
from hpcserve.config.server import ServerConfig
from hpcserve.engine.client import EngineClient
from hpcserve.engine.model_folder import with_model_folder
from hpcserve.engine.supervisor import child_environment, exit_reason
from hpcserve.errors import EngineDeadError, EngineStartError, UsageError
from hpcserve.ipc.endpoints import Endpoint
from hpcserve.log import get_logger
from hpcserve.server.run import (
    FORWARDED,
    INTERRUPTED,
    METRICS_FOLDER,
    log_sampling_defaults,
    serving_line,
    startup_line,
)

logger = get_logger(__name__)

MODULE = "hpcserve.server.frontend"
#: A process that ends so often in a row, each time this young, will not do better the next time.
_MOST_RESTARTS = 5
_YOUNG_S = 60.0
#: The news of the engine's end and of a process's end come by different ways.
_LAST_WORDS_S = 0.5
_STOP_S = 10.0
_SHM = "/dev/shm"


class Frontend:
    """One HTTP process and the socket it listens on, which outlives it.

    metrics: the folder where all of them, and those that were there before, leave their counts.
    """

    def __init__(
        self, index: int, order: dict[str, object], listener: socket.socket, metrics: str
    ) -> None:
        self.index = index
        self._metrics = metrics
        self._order = {**order, "index": index, "listener": listener.fileno()}
        self._listener = listener
        self._process: Process | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def spawn(self) -> None:
        """Start the process; it loads what it needs and waits for the engine."""
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", MODULE),
            stdin=PIPE,
            stdout=PIPE,
            pass_fds=[self._listener.fileno()],
            start_new_session=True,  # Ctrl-C is passed on by us
            env={**child_environment(), METRICS_FOLDER: self._metrics},
        )
        self.tell(json.dumps(self._order))

    async def connect(self, endpoint: Endpoint) -> None:
        """Let it serve. Raises EngineStartError where it ends instead."""
        assert self._process is not None and self._process.stdout is not None
        self.tell(str(endpoint))
        if not await self._process.stdout.readline():
            code = await self._process.wait()
            raise EngineStartError(f"HTTP process {self.index}: {exit_reason(code)}")

    def tell(self, line: str) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(line.encode() + b"\n")

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def wait(self) -> int:
        """Its exit code."""
        assert self._process is not None
        return await self._process.wait()

    async def end(self) -> None:
        """Cut its lifeline, and wait until it is gone."""
        if self._process is None:
            return
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), _STOP_S)
        except asyncio.TimeoutError:
            self.signal(signal.SIGKILL)
            await self._process.wait()


class _Signals:
    """Before the engine runs, Ctrl-C cancels; then it goes to the HTTP processes, which drain."""

    def __init__(self, frontends: list[Frontend]) -> None:
        self._frontends = frontends
        self.starting = asyncio.current_task()
        self.count = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)

    @property
    def exit_code(self) -> int:
        return INTERRUPTED if self.count > 1 or self.starting is not None else 0

    def _on_signal(self) -> None:
        self.count += 1
        if self.starting is not None:
            self.starting.cancel()
        for frontend in self._frontends:
            frontend.signal(FORWARDED)


async def serve_frontends(
    engine: EngineConfig,
    options: ServerConfig,
    listeners: list[socket.socket],
    core_module: str,
) -> int:
    """Serve until a signal ends it; returns the exit code.

    Raises what EngineClient.open raises, EngineDeadError, and EngineStartError for a process that
    cannot serve.
    """
    if engine.parallel.dp_size > 1:
        raise UsageError(
            f"--api-workers {options.api_workers} needs --dp-size 1: of several replicas, one HTTP "
            "process must know which has cached what"
        )
    config = with_model_folder(engine)
    order: dict[str, object] = {
        "engine": config.to_options(),
        "server": dataclasses.asdict(options),
    }
    metrics = tempfile.TemporaryDirectory(prefix="hpcserve-metrics-", dir=_memory_folder())
    frontends = [Frontend(index, order, one, metrics.name) for index, one in enumerate(listeners)]
    signals = _Signals(frontends)
    try:
        for frontend in frontends:
            await frontend.spawn()
        async with await EngineClient.open(config, module=core_module) as client:
            endpoint = client.replicas[0].endpoint
            await asyncio.gather(*(frontend.connect(endpoint) for frontend in frontends))
            signals.starting = None
            logger.info("%s", startup_line(client))
            log_sampling_defaults(client)
            print(serving_line(options, listeners[0], config), flush=True)
            await _watch(client, frontends, signals)
    except asyncio.CancelledError:
        if not signals.count:
            raise
    finally:
        await asyncio.gather(*(frontend.end() for frontend in frontends))
        metrics.cleanup()
    return signals.exit_code


def _memory_folder() -> str | None:
    """Where files are memory, if there is such a place: they are written for every step. A folder
    for temporary files may be full, or on another machine."""
    return _SHM if os.access(_SHM, os.W_OK) else None


async def _watch(client: EngineClient, frontends: list[Frontend], signals: _Signals) -> None:
    """Until all have ended after a signal. Raises EngineDeadError once the engine is gone."""
    died = asyncio.ensure_future(client.died.wait())
    keeping = [asyncio.ensure_future(_keep(one, client, signals)) for one in frontends]
    try:
        served = asyncio.ensure_future(asyncio.wait(keeping, return_when=asyncio.FIRST_EXCEPTION))
        await asyncio.wait({died, served}, return_when=asyncio.FIRST_COMPLETED)
        if client.dead is not None:
            for frontend in frontends:
                frontend.tell(str(client.dead))
            await asyncio.wait({served}, timeout=_STOP_S)
            raise EngineDeadError(str(client.dead))
        for task in keeping:
            if task.done():
                task.result()
    finally:
        waiting: list[asyncio.Future[Any]] = [died, served, *keeping]
        for one in waiting:
            one.cancel()


async def _keep(frontend: Frontend, client: EngineClient, signals: _Signals) -> None:
    """Start a process again that ended by itself."""
    num_young = 0
    while True:
        started = time.monotonic()
        code = await frontend.wait()
        if not signals.count:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.shield(client.died.wait()), _LAST_WORDS_S)
        if signals.count or client.dead is not None:
            return
        num_young = num_young + 1 if time.monotonic() - started < _YOUNG_S else 0
        reason = exit_reason(code)
        if num_young > _MOST_RESTARTS:
            raise EngineStartError(
                f"HTTP process {frontend.index} ended {num_young} times in a row, each time within "
                f"{_YOUNG_S:.0f} s; the last time, {reason}"
            )
        logger.error("HTTP process %d: %s; it is started again", frontend.index, reason)
        await frontend.spawn()
        await frontend.connect(client.replicas[0].endpoint)
