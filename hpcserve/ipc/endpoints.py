"""Where a core listens: a socket file that only its user can reach, or a guarded local port."""

from __future__ import annotations

import secrets
import shutil
import socket
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq

_SOCKET_FILE = "core.sock"
_BACKLOG = 128


@dataclass(frozen=True)
class Endpoint:
    """Address of a core, and the token without which it ignores a message.

    The token guards TCP addresses, which every user of the node can reach. `str(endpoint)` and
    `Endpoint.parse` carry both in one string, for command lines and messages.
    descriptor: of a socket that listens there already, for whoever binds to take over; -1: none.
    """

    address: str
    token: str = field(repr=False)
    descriptor: int = field(default=-1, compare=False)

    def __str__(self) -> str:
        return f"{self.address}#{self.token}"

    def handed_down(self) -> str:
        """`str` for a child process that is passed the descriptor, and shall listen there."""
        at = "" if self.descriptor < 0 else f"@{self.descriptor}"
        return f"{self.address}{at}#{self.token}"

    @property
    def is_ipv6(self) -> bool:
        """Whether it is a numerical address of IPv6, which ZMQ refuses unless it is told."""
        return self.address.startswith("tcp://[")

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        address, _, token = text.rpartition("#")
        if not address or not token:
            raise ValueError(f"{text!r} is no endpoint of the form ADDRESS#TOKEN")
        place, at, descriptor = address.rpartition("@")
        if at and descriptor.isdigit():  # a socket's file is never called so
            return cls(place, token, int(descriptor))
        return cls(address, token)


class OwnedEndpoint:
    """A fresh endpoint and the files behind it; `remove()` deletes them."""

    def __init__(self, folder: Path | None, endpoint: Endpoint) -> None:
        self._folder = folder
        self.endpoint = endpoint

    def remove(self) -> None:
        """Delete the socket's folder; calling it again does nothing."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Endpoint:
        return self.endpoint

    def __exit__(self, *_: object) -> None:
        self.remove()


def create_endpoint(parent: Path | None = None, *, name: str = _SOCKET_FILE) -> OwnedEndpoint:
    """Make a new endpoint on this machine.

    A unix socket in a 0700 folder of `parent` (default: the temporary folder). Job systems like
    long temporary paths, a socket's path must be short: then a port of the loopback device.
    """
    token = new_token()
    folder = Path(tempfile.mkdtemp(prefix="hpcserve-", dir=parent))
    path = folder / name
    if len(str(path).encode()) <= zmq.IPC_PATH_MAX_LEN:
        return OwnedEndpoint(folder, Endpoint(f"ipc://{path}", token))
    folder.rmdir()
    return OwnedEndpoint(None, Endpoint(f"tcp://127.0.0.1:{free_port()}", token))


def listening_endpoint(host: str) -> Endpoint:
    """A new endpoint at this node's address `host`, on a port that is bound from now on.

    Its number may be told to others before the process runs that will answer there.
    Raises OSError where `host` is no address of this node.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.bind((host, 0))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    port: int = listener.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    return Endpoint(f"tcp://{shown}:{port}", new_token(), listener.detach())


def bind(socket: zmq.Socket[Any], endpoint: Endpoint) -> None:
    """Let a socket of ZMQ listen at an endpoint; the descriptor, if there is one, is then its own."""
    socket.setsockopt(zmq.IPV6, endpoint.is_ipv6)
    if endpoint.descriptor >= 0:
        socket.setsockopt(zmq.USE_FD, endpoint.descriptor)
    socket.bind(endpoint.address)


def folder_of(endpoint: str) -> Path | None:
    """The folder of an endpoint that is a socket file, None for a port."""
    address = Endpoint.parse(endpoint).address
    return Path(address.removeprefix("ipc://")).parent if address.startswith("ipc://") else None


def new_token() -> str:
    return secrets.token_hex(16)


def free_port(host: str = "127.0.0.1") -> int:
    """A port of this node's address `host` that nobody had a moment ago."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
