"""One HTTP process of several: takes its order, connects to the engine, serves.

Started by frontends.py, never by hand. On standard input comes the order, then the engine's
endpoint, then, if the engine ends, why; the end of the input says that the server is gone.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import sys
import threading
from typing import Any

from hpcserve.config.engine import EngineConfig
from hpcserve.config.server import ServerConfig
from hpcserve.engine.client import EngineClient
from hpcserve.engine.model_folder import load_tokenizer
from hpcserve.errors import EngineDeadError, HpcserveError
from hpcserve.ipc.endpoints import Endpoint
from hpcserve.log import get_logger, setup_logging
from hpcserve.server.http import serve_client
from hpcserve.server.run import FORWARDED, INTERRUPTED, METRICS_FOLDER, Shutdown, run_loop

logger = get_logger(__name__)

READY = b"ready\n"


def main() -> None:
    line = sys.stdin.buffer.readline()
    if not line:
        sys.exit("no order came: this program is started by hpcserve itself")
    order = json.loads(line)
    setup_logging(role=f"api {order['index']}")
    try:
        with socket.socket(fileno=order["listener"]) as listener:
            sys.exit(run_loop(_run(order, listener)))
    except HpcserveError as error:
        logger.error("%s", error)
        sys.exit(error.exit_code)


async def _run(order: dict[str, Any], listener: socket.socket) -> int:
    options = ServerConfig(**order["server"])
    config = EngineConfig.from_options(order["engine"])
    shutdown = Shutdown(options.drain_timeout_s, (FORWARDED,))
    # SLURM may send it to every process of a job; a second one would cut the drain short.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        # What can be done before the engine listens is done before.
        tokenizer = load_tokenizer(config)
        endpoint = await asyncio.to_thread(sys.stdin.readline)
        if not endpoint:
            return 1
        client = await EngineClient.connect(Endpoint.parse(endpoint.strip()), tokenizer, config)
    except asyncio.CancelledError:
        if shutdown.interrupted:
            return INTERRUPTED
        raise
    async with client:
        loop = asyncio.get_running_loop()
        threading.Thread(target=_listen, args=(client, loop), name="lifeline", daemon=True).start()
        sys.stdout.buffer.write(READY)
        sys.stdout.buffer.flush()
        try:
            await serve_client(client, options, listener, shutdown)
        except EngineDeadError as error:
            return error.exit_code  # the process that started the engine says why
    return INTERRUPTED if shutdown.interrupted else 0


def _listen(client: EngineClient, loop: asyncio.AbstractEventLoop) -> None:
    for line in sys.stdin:
        loop.call_soon_threadsafe(client.replicas[0].declare_gone, line.strip())
    # Whoever would have removed it is gone.
    shutil.rmtree(os.environ[METRICS_FOLDER], ignore_errors=True)
    os._exit(1)


if __name__ == "__main__":
    main()
