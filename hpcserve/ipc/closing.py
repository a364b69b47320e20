"""The end of a ZMQ context, which never lasts longer than its last messages may take."""

from __future__ import annotations

import threading
from typing import Any

import zmq

from hpcserve.log import get_logger

logger = get_logger(__name__)

#: How long a closing side waits for its last messages to leave.
LINGER_MS = 2000
_GRACE_S = 0.5


def close_in_time(
    socket: zmq.Socket[Any], context: zmq.Context[Any], linger_ms: int = LINGER_MS
) -> None:
    """Let the last messages leave, then free the socket (and its file).

    libzmq (4.3.5) now and then waits for ever for a peer that closes in the same moment, whatever
    the linger says: then the context is left to the end of the process.
    """
    socket.close(linger=linger_ms)
    end = threading.Thread(target=context.term, name="zmq-term", daemon=True)
    end.start()
    end.join(linger_ms / 1000 + _GRACE_S)
    if end.is_alive():
        logger.debug("a context of ZMQ did not end in time")
