"""A process that makes rows ready: `python -m hpcserve.batch.prepare_child SOCKET`.

SOCKET is a descriptor that it inherited, the one end of a pair. The recipe comes first, then chunks,
each of which is answered. It ends when the other end is closed, and with the process that started
it, however that ends.
"""

from __future__ import annotations

import os
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

from hpcserve.engine.lifeline import end_with_parent_thread
from hpcserve.errors import HpcserveError

#: Words of an answer: its rows follow, or why there are none.
READY, ROWS, FAILED = "ready", "rows", "failed"

#: Whoever ends the run ends this process by the socket; its last rows are still wanted.
_NOT_FOR_US = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def main() -> None:
    end_with_parent_thread()
    for number in _NOT_FOR_US:
        signal.signal(number, signal.SIG_IGN)
    connection: Connection[Any, Any] = Connection(int(sys.argv[1]))
    try:
        maker = connection.recv().make()
    except (HpcserveError, OSError) as error:
        connection.send((FAILED, f"{type(error).__name__}: {error}"))
        return
    connection.send((READY, os.getpid()))
    while True:
        chunk = connection.recv()
        try:
            answer = (ROWS, maker.rows(chunk))
        except Exception as error:  # noqa: BLE001 - raised again where the chunk came from
            answer = (FAILED, f"{type(error).__name__}: {error}")
        connection.send(answer)


if __name__ == "__main__":
    try:
        main()
    except (EOFError, ConnectionError):
        sys.exit(0)
