"""What the process of a core runs: take the order, watch the lifeline, run.

Started by supervisor.CoreProcess, never by hand.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable

from hpcserve.config.engine import EngineConfig
from hpcserve.engine import lifeline
from hpcserve.errors import HpcserveError
from hpcserve.log import get_logger, setup_logging

logger = get_logger(__name__)


def main() -> None:
    from hpcserve.engine.core import run_core

    run_order(run_core)


def run_order(run: Callable[[EngineConfig, str], None]) -> None:
    """Read the order from standard input and call `run(config, endpoint)`.

    Ends the process at once when the one that ordered it is gone, so none is ever orphaned.
    """
    setup_logging(role="core")
    parent = os.getppid()
    lifeline.leave_signals_to_parent()
    line = sys.stdin.buffer.readline()
    if not line:
        sys.exit("no order came: this program is started by hpcserve itself")
    order = json.loads(line)
    lifeline.hold(parent)
    try:
        config = EngineConfig.from_options(order["options"])
        config = dataclasses.replace(
            config, dp_rank=order.get("dp_rank", 0), worker_endpoint=order.get("workers")
        )
        run(config, order["endpoint"])
    except HpcserveError as error:
        logger.error("%s", error)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
