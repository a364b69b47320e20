"""Put a supervisor together from the environment that it finds itself in."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from hpcserve.errors import ConfigError, EngineStartError, SlurmError
from hpcserve.launcher import deadline, environment, slurm_query
from hpcserve.launcher.base import JobEnvironment
from hpcserve.launcher.child import Child, DetachedChild
from hpcserve.launcher.doctor import examine
from hpcserve.launcher.doctor.base import FAIL
from hpcserve.launcher.engine_command import parallel_of, wants_gpus
from hpcserve.launcher.environment import SIGNALS_REACH_ALL
from hpcserve.launcher.followup import Chain, FollowUp, NoFollowUp, Requeue
from hpcserve.launcher.job_dir import JobDir, register
from hpcserve.launcher.signals import SignalInbox
from hpcserve.launcher.supervisor import Supervisor, SupervisorOptions
from hpcserve.log import get_logger, setup_logging

log = get_logger(__name__)


@dataclasses.dataclass(frozen=True)
class AllReduce:
    """`--preflight full`: an all-reduce over the nodes before the engine starts."""

    ifname: str | None

    def __call__(self, here: JobEnvironment) -> None:
        """Raises EngineStartError that names what failed, and where."""
        findings = examine.allocation(here, self.ifname, allreduce=True)
        for one in findings:
            log.info("%s %s %s: %s", one.level, one.host, one.check, one.found)
        failed = [one for one in findings if one.level == FAIL]
        if failed:
            what = f"{failed[0].host} {failed[0].check}".strip()
            raise EngineStartError(f"preflight: {what}: {failed[0].found}; {failed[0].fix}")


def supervise(
    run_dir: str,
    step: Sequence[str],
    options: SupervisorOptions,
    inbox: SignalInbox,
    *,
    auth: bool,
    check: AllReduce | None = None,
    rows_done: Callable[[], int] = lambda: 0,
) -> int:
    """Run the job's step under a supervisor; returns the batch script's exit code.

    rows_done: see Supervisor.
    """
    here = environment.current()
    setup_logging(role=f"job {here.job_id}")
    job_dir = JobDir.create(Path(run_dir))
    on_slurm = environment.inside_allocation()
    if auth and options.kind == "serve":
        job_dir.ensure_api_key()
    _adopt(job_dir, here, options.kind, on_slurm)
    _check_layout(step, here)
    log.info(
        "%s on %d nodes (%s), run directory %s",
        *(options.kind, here.num_nodes, ", ".join(here.hosts), job_dir.path),
    )
    if check is not None and on_slurm:
        check(here)
    kill_wait = slurm_query.setting("KillWait", 30.0) if on_slurm else 3600.0
    return Supervisor(
        job_dir=job_dir,
        environment=here,
        command=step,
        options=dataclasses.replace(options, kill_wait_s=kill_wait),
        inbox=inbox,
        deadline=deadline.of_slurm_job(here.job_id) if on_slurm else deadline.never(),
        followup=_followup(options.continue_with, here, job_dir, on_slurm),
        start_child=_child_kind(step, on_slurm),
        rows_done=rows_done,
    ).run()


def _adopt(job_dir: JobDir, here: JobEnvironment, kind: str, on_slurm: bool) -> None:
    """Make a job that was submitted with plain sbatch known to `ps`, `status` and `logs`."""
    if on_slurm:
        _link_log(job_dir, here.job_id)
    known = here.job_id in job_dir.read_job().get("job_ids", [])
    if known or (here.array_task_id is not None and job_dir.path.parent.name == "tasks"):
        return
    name = job_dir.read_job().get("name") or _slurm_name(here.job_id) or job_dir.path.name
    job_dir.update_job(name=name, kind=kind)
    job_dir.add_job_ids(here.job_id)
    register(here.job_id, job_dir.path)


def _link_log(job_dir: JobDir, job_id: str) -> None:
    """Where the script's log lies elsewhere, a link to that of this job, in place of an older."""
    if job_dir.job_log.exists() and not job_dir.job_log.is_symlink():
        return
    log_file = slurm_query.stdout_path(job_id)
    if log_file is not None:
        job_dir.job_log.unlink(missing_ok=True)
        job_dir.job_log.symlink_to(log_file)


def _slurm_name(job_id: str) -> str:
    try:
        info = slurm_query.job(job_id)
    except SlurmError:
        return ""
    return info.name if info else ""


def _check_layout(step: Sequence[str], here: JobEnvironment) -> None:
    """tp x pp x dp must be what the nodes have; a world of one may leave the others idle."""
    words = list(step)
    parallel = parallel_of(words[words.index("node") :] if "node" in words else words)
    gpus = environment.gpus_on_node() if wants_gpus(words) else None
    world = parallel.world_size
    product = f"tp {parallel.tp_size} x pp {parallel.pp_size} x dp {parallel.dp_size} = {world}"
    if world == 1:
        if here.num_nodes > 1:
            log.warning("%s: %d of %d nodes stand by", product, here.num_nodes - 1, here.num_nodes)
        return
    if world % here.num_nodes or (gpus and world != gpus * here.num_nodes):
        have = f"{here.num_nodes} nodes" + (f" x {gpus} GPUs" if gpus else "")
        raise ConfigError(f"{product}, but this job has {have}; change --tp or the job's size")


def _followup(policy: str, here: JobEnvironment, job_dir: JobDir, on_slurm: bool) -> FollowUp:
    if not on_slurm or policy == "none":
        return NoFollowUp()
    if policy == "chain":
        return Chain(here, job_dir, early=True)
    return Requeue(here, fallback=Chain(here, job_dir, early=False))


def _child_kind(step: Sequence[str], on_slurm: bool) -> Callable[[Sequence[str]], Child]:
    """srun must be out of reach of the signals that SLURM sends to all the script started."""
    is_srun = bool(step) and Path(step[0]).name == "srun"
    if on_slurm and is_srun and slurm_query.word("ProctrackType") == "proctrack/linuxproc":
        os.environ[SIGNALS_REACH_ALL] = "1"
        return DetachedChild
    return Child
