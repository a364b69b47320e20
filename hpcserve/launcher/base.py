"""What every launcher gives: who am I inside a job, and a job as seen from outside."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from pathlib import Path


class JobState(str, Enum):
    """The life of a job, as `hpcserve status` says it.

    pending: in the queue.  starting: nodes come up.  loading: the engine loads.  ready: it answers.
    running: a batch run has its nodes.
    draining: no new work, what runs is finished.  finished: it ended as it should.  dead: it did
    not, and `cause` says why.  unknown: nobody can tell right now (SLURM does not answer).
    """

    PENDING = "pending"
    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    RUNNING = "running"
    DRAINING = "draining"
    FINISHED = "finished"
    DEAD = "dead"
    UNKNOWN = "unknown"

    @property
    def over(self) -> bool:
        return self in (JobState.FINISHED, JobState.DEAD)


@dataclass(frozen=True)
class JobEnvironment:
    """Who this process is in its job; `rank` counts nodes, since one task runs on each.

    hosts: names of all nodes, the head first.  restart_count: 0 in the first run of the job.
    """

    job_id: str
    rank: int
    num_nodes: int
    hosts: tuple[str, ...]
    node_name: str
    restart_count: int = 0
    array_task_id: str | None = None

    @property
    def incarnation(self) -> str:
        """Tells this run of the job from earlier ones, whose files may still lie about."""
        return f"{self.job_id}.{self.restart_count}"


class Launcher(ABC):
    """Turns a rendered script into a running job."""

    @abstractmethod
    def submit(self, script: str, run_dir: Path, *, replicas: int = 1) -> str:
        """Start the job whose batch script is `script`; returns its id."""

    @abstractmethod
    def cancel(self, job_id: str) -> None:
        """End the job; ending one that has ended is fine."""
