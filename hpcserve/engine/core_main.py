"""What the process of a core runs: take the order, watch the lifeline, run.

Started by supervisor.CoreProcess, never by hand.
"""

from __future__ import annotations

import json
import os
import select
import sys
import threading
from collections.abc import Callable

from hpcserve.config.engine import EngineConfig
from hpcserve.errors import HpcserveError
from hpcserve.log import get_logger, setup_logging

logger = get_logger(__name__)

_WATCH_PERIOD_S = 1.0


def main() -> None:
    from hpcserve.engine.core import run_core

    run_order(run_core)


def run_order(run: Callable[[EngineConfig, str], None]) -> None:
    """Read the order from standard input and call `run(config, endpoint)`.

    Ends the process at once when the one that ordered it is gone, so none is ever orphaned.
    """
    setup_logging(role="core")
    parent = os.getppid()
    line = sys.stdin.buffer.readline()
    if not line:
        sys.exit("no order came: this program is started by hpcserve itself")
    order = json.loads(line)
    threading.Thread(target=_watch, args=(parent,), name="lifeline", daemon=True).start()
    try:
        run(EngineConfig.from_options(order["options"]), order["endpoint"])
    except HpcserveError as error:
        logger.error("%s", error)
        sys.exit(error.exit_code)


def _watch(parent: int) -> None:
    # The pipe may outlive the parent in a process that it forked; its pid cannot.
    stdin = sys.stdin.fileno()
    while os.getppid() == parent:
        readable, _, _ = select.select([stdin], [], [], _WATCH_PERIOD_S)
        if readable and not os.read(stdin, 1):
            break
    os._exit(1)


if __name__ == "__main__":
    main()
