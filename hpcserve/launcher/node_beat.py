"""A node's sign of life: its file in the run directory, written anew every two seconds."""

from __future__ import annotations

import os
import time

from hpcserve.errors import OutputError
from hpcserve.launcher import network
from hpcserve.launcher.base import JobEnvironment
from hpcserve.launcher.environment import gpus_on_node
from hpcserve.launcher.fabric.base import NetworkFacts
from hpcserve.launcher.files import write_beat
from hpcserve.launcher.job_dir import JobDir
from hpcserve.launcher.liveness import BEAT_S
from hpcserve.log import get_logger

log = get_logger(__name__)


class NodeBeat:
    """phase: starting, running, draining or ended.  engine_pid: None before its start."""

    def __init__(self, job_dir: JobDir, environment: JobEnvironment, facts: NetworkFacts) -> None:
        self._path = job_dir.node(environment.rank)
        self._environment = environment
        self._facts = facts
        self._count = 0
        self._next = 0.0
        self.phase = "starting"
        self.engine_pid: int | None = None

    def show(self, *, now: bool = False) -> None:
        """Write it where it is time to, or `now`; a full disk ends nothing."""
        if not now and time.monotonic() < self._next:
            return
        self._next = time.monotonic() + BEAT_S
        self._count += 1
        content = {
            "beat": self._count,
            "incarnation": self._environment.incarnation,
            "rank": self._environment.rank,
            "host": self._environment.node_name,
            "pid": os.getpid(),
            "engine_pid": self.engine_pid,
            "phase": self.phase,
            "addresses": {name: list(a) for name, a in self._facts.interfaces.items()},
            "rdma": [device.name for device in self._facts.rdma],
            "gpus": gpus_on_node(),
            "machine": network.machine_id(),
        }
        try:
            write_beat(self._path, content)
        except OutputError as error:
            log.warning("%s; going on without", error)
