"""Where the ranks meet: the head binds a port first, then publishes it in the run directory."""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from hpcserve.errors import EngineStartError, PortInUseError
from hpcserve.launcher.base import JobEnvironment
from hpcserve.launcher.files import read_json, write_json
from hpcserve.launcher.job_dir import JobDir


@dataclass(frozen=True)
class Rendezvous:
    """secret: only processes of this job know it, so that nobody else joins.

    machine: the head's; a loopback address is of use on that machine only.
    """

    address: str
    port: int
    secret: str
    machine: str


def bind(address: str, port: int = 0) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises PortInUseError for a port that somebody else has.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    # A named port may still have old connections of the job's last run.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise PortInUseError(f"cannot listen on {address} port {port}: {error.strerror}") from error
    listener.set_inheritable(True)
    return listener


def publish(
    job_dir: JobDir, environment: JobEnvironment, listener: socket.socket, machine: str
) -> Rendezvous:
    """Write rendezvous.json for the socket's own address; readable by the job's user only."""
    address, port = listener.getsockname()[:2]
    secret = secrets.token_hex(16)
    content = {
        "address": address,
        "port": port,
        "secret": secret,
        "machine": machine,
        "incarnation": environment.incarnation,
    }
    write_json(job_dir.rendezvous, content, mode=0o600)
    return Rendezvous(address, port, secret, machine)


def wait_for(
    job_dir: JobDir,
    environment: JobEnvironment,
    timeout_s: float,
    stopped: Callable[[], bool] = lambda: False,
) -> Rendezvous:
    """Wait for the head's word in this run of the job; what an earlier run left is passed over.

    Raises EngineStartError after `timeout_s`, or as soon as `stopped()`.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if stopped():
            raise EngineStartError(f"rank {environment.rank} was told to end while it started")
        content = read_json(job_dir.rendezvous)
        if content and content.get("incarnation") == environment.incarnation:
            return Rendezvous(
                content["address"], content["port"], content["secret"], content["machine"]
            )
        time.sleep(0.1)
    raise EngineStartError(
        f"rank {environment.rank} on {environment.node_name} heard nothing from the head "
        f"{environment.hosts[0]} in {timeout_s:.0f} s; is {job_dir.path} seen by every node?"
    )
