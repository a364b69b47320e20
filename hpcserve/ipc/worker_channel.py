"""Messages between a core and the ranks in other processes: one ROUTER, two DEALERs a rank.

A rank has one socket for its steps and one for its signs of life, which another thread sends.
"""

from __future__ import annotations

import msgspec
import zmq

from hpcserve.ipc.closing import close_in_time
from hpcserve.ipc.codec import Decoder, encode
from hpcserve.ipc.endpoints import Endpoint, bind
from hpcserve.ipc.messages import FromWorker, ToWorker
from hpcserve.log import get_logger

logger = get_logger(__name__)

#: The sockets of a rank.
STEPS, BEATS, RESULTS = b"s", b"b", b"r"


class ExecutorChannel:
    """The core's end; used by one thread."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._token = endpoint.token.encode()
        self._decoder: Decoder[FromWorker] = Decoder(FromWorker)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        bind(self._socket, endpoint)

    @property
    def address(self) -> str:
        """Where the socket is bound, with the port that was found where none was said."""
        return self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def receive(self, timeout_ms: int) -> list[FromWorker]:
        """Everything that has arrived; waits only for the first."""
        if timeout_ms and not self._socket.poll(timeout_ms):
            return []
        messages: list[FromWorker] = []
        while True:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return messages
            if len(frames) != 2 or not frames[0].startswith(self._token):
                logger.warning("ignored a message without this engine's token")
                continue
            try:
                messages.append(self._decoder.decode(frames[1]))
            except msgspec.MsgspecError as error:
                logger.error("ignored a message of another version: %s", error)

    def send(self, rank: int, message: ToWorker, socket: bytes = STEPS) -> None:
        self._socket.send_multipart((_identity(self._token, rank, socket), encode(message)))

    def broadcast(self, ranks: range | tuple[int, ...], message: ToWorker) -> None:
        """Encode once, send to each rank."""
        data = encode(message)
        for rank in ranks:
            self._socket.send_multipart((_identity(self._token, rank, STEPS), data))

    def close(self) -> None:
        if not self._socket.closed:
            close_in_time(self._socket, self._context)


class WorkerSocket:
    """One of a rank's sockets; used by one thread."""

    def __init__(self, endpoint: Endpoint, rank: int, socket: bytes) -> None:
        self._decoder: Decoder[ToWorker] = Decoder(ToWorker)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IPV6, endpoint.is_ipv6)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 10)
        self._socket.setsockopt(zmq.IDENTITY, _identity(endpoint.token.encode(), rank, socket))
        self._socket.connect(endpoint.address)

    def receive(self, timeout_ms: int) -> ToWorker | None:
        """The next message, or None after `timeout_ms` (-1: wait for ever)."""
        if not self._socket.poll(timeout_ms):
            return None
        return self._decoder.decode(self._socket.recv())

    def send(self, message: FromWorker) -> None:
        self._socket.send(encode(message))

    def close(self) -> None:
        if not self._socket.closed:
            close_in_time(self._socket, self._context)


def _identity(token: bytes, rank: int, socket: bytes) -> bytes:
    return token + socket + str(rank).encode()
