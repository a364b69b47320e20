"""Messages between frontends and a core, over ZMQ: many DEALERs, one ROUTER.

A frontend greets with an empty message, so the core knows whom to tell that it is ready; the
last word on its state (Ready, EngineDead) is repeated to every frontend that comes later.
Neither side ever blocks on sending: queues have no limit here, the scheduler limits requests.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable

import msgspec
import zmq
from zmq.utils.monitor import recv_monitor_message

from hpcserve.ipc.closing import LINGER_MS, close_in_time
from hpcserve.ipc.codec import Decoder, encode
from hpcserve.ipc.endpoints import Endpoint, bind
from hpcserve.ipc.messages import CoreMessage, EngineDead, FrontendMessage, Ready
from hpcserve.log import get_logger

logger = get_logger(__name__)

_GREETING = b""
#: How long a core that dies early waits for somebody to tell it to.
_AUDIENCE_TIMEOUT_S = 2.0
#: Messages handled per turn of the event loop, so that a burst cannot starve other tasks.
_BURST = 64


class CoreChannel:
    """The core's end; used by one thread."""

    def __init__(self, endpoint: Endpoint | str) -> None:
        if isinstance(endpoint, str):
            endpoint = Endpoint.parse(endpoint)
        self._token = endpoint.token.encode()
        self._decoder: Decoder[FrontendMessage] = Decoder(FrontendMessage)
        self._context = zmq.Context()
        self._socket = _socket(self._context, zmq.ROUTER)
        # An answer to a frontend that is gone shall be noticed, not dropped in silence.
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        bind(self._socket, endpoint)
        self._frontends: set[bytes] = set()
        self._state: Ready | EngineDead | None = None
        self._received: deque[tuple[bytes, FrontendMessage]] = deque()

    def receive(self, timeout_ms: int) -> list[tuple[bytes, FrontendMessage]]:
        """Everything that has arrived, as (frontend, message); waits only for the first.

        timeout_ms: longest wait; 0 does not wait, -1 waits for ever.
        """
        if not self._received and timeout_ms != 0:
            self._socket.poll(timeout_ms)
        self._drain()
        messages = list(self._received)
        self._received.clear()
        return messages

    def send(self, frontend: bytes, message: CoreMessage) -> bool:
        """Send to one frontend. False where it is gone: nobody wants its requests any more."""
        try:
            self._socket.send_multipart((frontend, encode(message)), zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._frontends.discard(frontend)
            return False
        return True

    def broadcast(self, message: CoreMessage) -> None:
        """Send to every frontend; Ready and EngineDead also to those who come later."""
        self._drain()
        if isinstance(message, Ready | EngineDead):
            self._state = message
        if isinstance(message, EngineDead):
            self._await_audience()
        for frontend in list(self._frontends):
            self.send(frontend, message)

    def close(self) -> None:
        """Let the last messages leave, then free the socket (and its file)."""
        if not self._socket.closed:
            close_in_time(self._socket, self._context)

    def _await_audience(self) -> None:
        deadline = time.monotonic() + _AUDIENCE_TIMEOUT_S
        while not self._frontends and (left := deadline - time.monotonic()) > 0:
            self._socket.poll(max(1, int(left * 1000)))
            self._drain()

    def _drain(self) -> None:
        while True:
            try:
                frontend, data = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            except ValueError:
                logger.warning("ignored a message that is not of two frames")
                continue
            if not frontend.startswith(self._token):
                logger.warning("ignored a message without this engine's token")
            elif data == _GREETING:
                self._welcome(frontend)
            else:
                self._decode(frontend, data)

    def _welcome(self, frontend: bytes) -> None:
        if frontend in self._frontends:
            return
        self._frontends.add(frontend)
        if self._state is not None:
            self.send(frontend, self._state)

    def _decode(self, frontend: bytes, data: bytes) -> None:
        try:
            self._received.append((frontend, self._decoder.decode(data)))
        except msgspec.MsgspecError as error:
            logger.error("ignored a message of another version: %s", error)


class FrontendChannel:
    """A frontend's end, on the running event loop: each message is given to `on_message`.

    A callback, not a coroutine to await: one message carries a whole step, and there is nobody
    to wake but the requests in it.

    on_broken: called when a core that was there is no longer: what it had of this frontend is lost.
    (No heartbeats of ZMTP's own: a ping to a peer that is closing aborts libzmq, up to 4.3.5.)
    """

    def __init__(
        self,
        endpoint: Endpoint,
        on_message: Callable[[CoreMessage], None],
        on_broken: Callable[[], None] | None = None,
    ) -> None:
        self._on_message = on_message
        self._on_broken = on_broken
        self._decoder: Decoder[CoreMessage] = Decoder(CoreMessage)
        self._context = zmq.Context()
        self._socket = _socket(self._context, zmq.DEALER)
        self._socket.setsockopt(zmq.IPV6, endpoint.is_ipv6)
        self._socket.setsockopt(zmq.IDENTITY, endpoint.token.encode() + secrets.token_bytes(8))
        self._socket.setsockopt(zmq.RECONNECT_IVL, 10)
        self._loop = asyncio.get_running_loop()
        # A connection that never came about is no broken one: cores start late.
        self._monitor = self._socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        )
        self._loop.add_reader(self._monitor.FD, self._on_event)
        self._was_connected = False
        # The descriptor speaks up only for one who looked and found nothing.
        self._on_event()
        self._socket.connect(endpoint.address)
        self._fd: int = self._socket.FD
        self._loop.add_reader(self._fd, self._on_readable)
        self._send(_GREETING)

    def send(self, message: FrontendMessage) -> None:
        """Queue a message; never blocks."""
        self._send(encode(message))

    def close(self, *, linger_ms: int = LINGER_MS) -> None:
        """Stop receiving and free the socket; `linger_ms` bounds the wait for what is unsent."""
        if not self._socket.closed:
            self._loop.remove_reader(self._fd)
            self._loop.remove_reader(self._monitor.FD)
            self._socket.disable_monitor()
            self._monitor.close()
            close_in_time(self._socket, self._context, linger_ms)

    def _send(self, data: bytes) -> None:
        self._socket.send(data, zmq.NOBLOCK)
        # The descriptor signals edges, and sending may have eaten one.
        self._loop.call_soon(self._on_readable)

    def _on_event(self) -> None:
        while not self._monitor.closed:
            try:
                event = recv_monitor_message(self._monitor, zmq.NOBLOCK)["event"]
            except zmq.Again:
                return
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._was_connected = True
            elif self._was_connected and self._on_broken is not None:
                self._on_broken()

    def _on_readable(self) -> None:
        if self._socket.closed:
            return
        for _ in range(_BURST):
            try:
                data = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._on_message(self._decoder.decode(data))
            if self._socket.closed:
                return
        self._loop.call_soon(self._on_readable)


def _socket(context: zmq.Context[zmq.Socket[bytes]], kind: int) -> zmq.Socket[bytes]:
    socket = context.socket(kind)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    return socket
