"""Find out from the environment which job, node and run this process belongs to."""

from __future__ import annotations

import os
import socket

from hpcserve.config.slurm import SBATCH_VARIABLES
from hpcserve.errors import ConfigError
from hpcserve.launcher.base import JobEnvironment
from hpcserve.launcher.hostlist import expand_hostlist

#: Set by submitit's controller.
LOCAL_JOB_ID = "SUBMITIT_LOCAL_JOB_ID"
#: Set by the supervisor where SLURM signals every process of a step, not its tasks alone.
SIGNALS_REACH_ALL = "HPCSERVE_SIGNALS_REACH_ALL"


def inside_allocation() -> bool:
    """Whether this process runs in a SLURM allocation (a batch job, a step, or `salloc`)."""
    return bool(os.environ.get("SLURM_JOB_ID"))


#: The batch script's own step, and that of the shell which `salloc` opens on the first node.
_NO_STEPS = ("", "4294967291", "4294967290")


def in_step() -> bool:
    """Whether `srun` started this process, rather than the batch script or `salloc`."""
    return inside_allocation() and os.environ.get("SLURM_STEP_ID", "") not in _NO_STEPS


def current() -> JobEnvironment:
    """The job this process belongs to; outside of any, a job of one node."""
    return slurm_environment() if inside_allocation() else local_environment()


def local_environment() -> JobEnvironment:
    name = socket.gethostname()
    # The node's process inherits the id from the supervisor's environment.
    job_id = f"local-{os.environ.get(LOCAL_JOB_ID, os.getpid())}"
    return JobEnvironment(job_id=job_id, rank=0, num_nodes=1, hosts=(name,), node_name=name)


def slurm_environment() -> JobEnvironment:
    """From SLURM's variables.

    submitit's SlurmJobEnvironment serves for the ids. The nodes are read here: it takes those of
    the job where a step may have fewer, and the host name from a variable that SLURM copies from
    the batch host to every node.
    """
    from submitit.slurm.slurm import SlurmJobEnvironment

    ids = SlurmJobEnvironment()
    step = in_step()
    nodes = _first("SLURM_STEP_NODELIST" if step else "", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
    hosts = tuple(expand_hostlist(nodes)) or (socket.gethostname(),)
    rank = _number("SLURM_NODEID", 0) if step else 0
    if rank >= len(hosts):
        raise ConfigError(
            f"SLURM_NODEID is {rank}, but SLURM lists {len(hosts)} nodes: {', '.join(hosts)}; "
            "start one task per node (srun --ntasks-per-node=1)"
        )
    return JobEnvironment(
        job_id=ids.job_id,
        rank=rank,
        num_nodes=len(hosts),
        hosts=hosts,
        node_name=os.environ.get("SLURMD_NODENAME") or hosts[rank],
        restart_count=_number("SLURM_RESTART_COUNT", 0),
        array_task_id=ids.array_task_id,
    )


def gpus_on_node() -> int | None:
    """GPUs that SLURM gave this node; None where it gave no number."""
    text = os.environ.get("SLURM_GPUS_ON_NODE", "")
    return int(text) if text.isdigit() else None


def without_slurm(environ: dict[str, str]) -> dict[str, str]:
    """A copy fit for `sbatch`: what an outer job set must not leak into the new one.

    Those of `SBATCH_*` go as well that have been read, and are in the script by now, and those that
    would take the job's log, array or place in the queue from us. The others are the user's word.
    """
    kept = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT", "SLURM_JWT")
    return {
        name: value
        for name, value in environ.items()
        if name in kept
        or (name not in _READ and not name.startswith(("SLURM_", "SLURMD_", "SRUN_")))
    }


_READ = frozenset(SBATCH_VARIABLES.values()) | {
    f"SBATCH_{name}"
    for name in ("ARRAY_INX", "ERROR", "EXPORT", "INPUT", "OPEN_MODE", "OUTPUT", "WAIT")
}


def _first(*names: str) -> str:
    return next((os.environ[name] for name in names if os.environ.get(name)), "")


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    if not text:
        return default
    if not text.isdigit():
        raise ConfigError(f"environment variable {name}={text!r} is no number")
    return int(text)
