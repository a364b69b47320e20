"""Where the launchers of several nodes meet: node 0 listens, the others join and stay connected.

JSON messages over the standard library's authenticated connections: each side proves by a
challenge that it knows the job's secret, which itself is never sent. A connection that breaks
tells each side at once that the other is gone; so does one that is silent, where a process was
halted or a node lost its power, since each side says every second that it is there.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import Any

from hpcserve import envs
from hpcserve.config.parallel import split_address
from hpcserve.errors import ConfigError, EngineStartError, PortInUseError
from hpcserve.log import get_logger

logger = get_logger(__name__)

_RETRY_S = 0.2
#: A stranger that connects and says nothing is dropped after this.
_HANDSHAKE_S = 10.0
_BEAT_S = 1.0
#: A side that said nothing for so long is gone.
SILENCE_S = 8.0
#: Who has not listened for so long was halted itself, as SLURM does with a job that it suspends:
#: then nobody else is to blame for the silence.
_AWAY_S = 3.0
_BEAT = {"kind": "beat"}

Message = dict[str, Any]
#: (node rank, message); None: the node is gone.
OnMessage = Callable[[int, Message | None], None]


def secret() -> bytes:
    """Raises ConfigError where none is set."""
    text = envs.HPCSERVE_DIST_SECRET.get()
    if not text:
        raise ConfigError(
            f"an engine of several nodes needs {envs.HPCSERVE_DIST_SECRET.name}, the same on every "
            "node, so that nobody else joins; hpcserve submit sets it, by hand use for example "
            "`openssl rand -hex 16`"
        )
    return text.encode()


class Head:
    """Node 0's end. Messages come in threads of their own, one a node, in order."""

    def __init__(self, address: str, num_nodes: int, on_message: OnMessage) -> None:
        self._secret = secret()
        self._num_nodes = num_nodes
        self._on_message = on_message
        self._nodes: dict[int, Connection] = {}
        self._heard_s: dict[int, float] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._listener = _listener(address)
        threading.Thread(target=self._accept, name="rendezvous", daemon=True).start()
        threading.Thread(target=self._beat, name="rendezvous-beat", daemon=True).start()

    def send(self, node_rank: int, message: Message) -> None:
        """A node that is gone gets nothing; its end was told."""
        with self._lock, contextlib.suppress(OSError):
            if node_rank in self._nodes:
                self._nodes[node_rank].send_bytes(json.dumps(message).encode())

    def close(self) -> None:
        """Tell every node to end."""
        self._closed.set()
        for node_rank in list(self._nodes):
            self.send(node_rank, {"kind": "end"})
        # close() alone would not wake the thread that accepts.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                accepted, (host, *_) = self._listener.accept()
            except OSError:
                return
            threading.Thread(
                target=self._serve, args=(accepted, host), name="rendezvous-node", daemon=True
            ).start()

    def _serve(self, accepted: socket.socket, host: str) -> None:
        accepted.settimeout(None)
        connection = Connection(accepted.detach())
        timer = threading.Timer(_HANDSHAKE_S, _shut, (connection,))
        timer.start()
        try:
            deliver_challenge(connection, self._secret)
            answer_challenge(connection, self._secret)
            hello = json.loads(connection.recv_bytes())
        except (AuthenticationError, OSError, EOFError, ValueError):
            logger.warning("turned away a stranger from %s: it does not know the secret", host)
            connection.close()
            return
        finally:
            timer.cancel()
        self._listen(int(hello["node_rank"]), connection, hello)

    def _admit(self, node_rank: int, connection: Connection) -> bool:
        """False for a number that is taken, or is none of ours."""
        with self._lock:
            if not 0 < node_rank < self._num_nodes or node_rank in self._nodes:
                return False
            self._heard_s[node_rank] = time.monotonic()
            self._nodes[node_rank] = connection
        return True

    def _listen(self, node_rank: int, connection: Connection, hello: Message) -> None:
        if not self._admit(node_rank, connection):
            why = (
                f"node_rank {node_rank} is taken already, or not one of 1 to {self._num_nodes - 1}"
            )
            connection.send_bytes(json.dumps({"kind": "refused", "reason": why}).encode())
            connection.close()
            return
        self._on_message(node_rank, hello)
        with contextlib.suppress(OSError, EOFError):
            while True:
                message = json.loads(connection.recv_bytes())
                self._heard_s[node_rank] = time.monotonic()
                if message != _BEAT:
                    self._on_message(node_rank, message)
        with self._lock:
            del self._nodes[node_rank]
            connection.close()
        if not self._closed.is_set():
            self._on_message(node_rank, None)

    def _beat(self) -> None:
        """Tell every node that we are here, and hang up on those that say nothing."""
        looked_s = listening_s = time.monotonic()
        while not self._closed.wait(_BEAT_S):
            now = time.monotonic()
            if now - looked_s > _AWAY_S:
                listening_s = now
            looked_s = now
            for node_rank, connection in list(self._nodes.items()):
                self.send(node_rank, _BEAT)
                silent_s = now - max(self._heard_s[node_rank], listening_s)
                if silent_s > SILENCE_S:
                    logger.error("node %d said nothing for %.0f s", node_rank, silent_s)
                    _shut(connection)


class Member:
    """Another node's end."""

    def __init__(self, address: str, hello: Message, timeout_s: float) -> None:
        """Raises EngineStartError where the head is not to be reached, or refuses us."""
        self._lock = threading.Lock()
        self._connection = _connect(address, timeout_s)
        self._heard_s = self._looked_s = time.monotonic()
        self._closed = threading.Event()
        self.send(hello)
        threading.Thread(target=self._beat, name="rendezvous-beat", daemon=True).start()

    def send(self, message: Message) -> None:
        with self._lock, contextlib.suppress(OSError):
            self._connection.send_bytes(json.dumps(message).encode())

    def receive(self, timeout_s: float) -> Message | None:
        """The next message, or None after at most so long.

        Raises EOFError where the head is gone, or was silent for SILENCE_S.
        """
        try:
            heard = self._connection.poll(timeout_s)
            now = time.monotonic()
            if now - self._looked_s > timeout_s + _AWAY_S:
                self._heard_s = now
            self._looked_s = now
            if not heard:
                if now - self._heard_s > SILENCE_S:
                    raise EOFError(f"it said nothing for {SILENCE_S:.0f} s")
                return None
            message: Message = json.loads(self._connection.recv_bytes())
        except OSError as error:
            raise EOFError(str(error)) from error
        self._heard_s = now
        return None if message == _BEAT else message

    def own_address(self) -> str:
        """Under which the head sees this node: no loopback unless the head is here."""
        with socket.socket(fileno=os.dup(self._connection.fileno())) as held:
            address: str = held.getsockname()[0]
        return address

    def close(self) -> None:
        self._closed.set()
        with self._lock:
            self._connection.close()

    def _beat(self) -> None:
        while not self._closed.wait(_BEAT_S):
            self.send(_BEAT)


def _listener(address: str) -> socket.socket:
    """A listening socket: the launcher's, if it handed one down, else a new one."""
    descriptor = envs.HPCSERVE_DIST_LISTEN_FD.get()
    if descriptor >= 0:
        return socket.socket(fileno=descriptor)
    host, port = split_address(address)
    _refuse_hidden_loopback(host, address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(64)
    except OSError as error:
        listener.close()
        raise PortInUseError(
            f"--dist-init-addr {address}: node 0 cannot listen there ({error.strerror or error}); "
            "it must be an address of this node, and a free port"
        ) from error
    return listener


def _refuse_hidden_loopback(host: str, address: str) -> None:
    """A name of this machine that stands for 127.0.1.1 in its /etc/hosts is of no use to others.

    Who writes a loopback address down, or localhost, means it: all nodes on one machine.
    """
    if host == "localhost" or _is_loopback(host):
        return
    with contextlib.suppress(socket.gaierror):
        found: str = str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
        if _is_loopback(found):
            raise ConfigError(
                f"--dist-init-addr {address}: here {host} is {found}, a loopback address that no "
                "other node reaches; give this node's address on the network instead"
            )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _connect(address: str, timeout_s: float) -> Connection:
    key = secret()
    host, port = split_address(address)
    hint = " (a loopback address means this machine)" if _is_loopback(host) else ""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            connected = socket.create_connection((host, port), timeout=_HANDSHAKE_S)
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise EngineStartError(
                    f"{socket.gethostname()} cannot reach node 0 at {address}: {error}; is it "
                    f"started, and is the address reached from here?{hint}"
                ) from error
            time.sleep(_RETRY_S)
    connected.settimeout(None)
    connection = Connection(connected.detach())
    # Node 0's launcher may listen long before node 0 answers; something else never will.
    left_s = max(_HANDSHAKE_S, deadline - time.monotonic())
    timer = threading.Timer(left_s, _shut, (connection,))
    timer.start()
    try:
        answer_challenge(connection, key)
        deliver_challenge(connection, key)
    except AuthenticationError as error:
        raise EngineStartError(
            f"node 0 at {address} has another {envs.HPCSERVE_DIST_SECRET.name}"
        ) from error
    except (EOFError, OSError, ValueError) as error:
        raise EngineStartError(
            f"who listens at {address} hung up, or did not answer in {left_s:.0f} s: has node 0 ended, "
            "or is something else at that port?"
        ) from error
    finally:
        timer.cancel()
    return connection


def _shut(connection: Connection) -> None:
    with contextlib.suppress(OSError):
        held = socket.socket(fileno=os.dup(connection.fileno()))
        held.shutdown(socket.SHUT_RDWR)
        held.close()
