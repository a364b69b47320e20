"""Ask SLURM about jobs. Its daemons may be away for a while: that is an answer of its own kind.

`squeue --states=all` knows running jobs and, for MinJobAge (300 s by default), ended ones; after
that only `sacct` does, where the site keeps accounting at all.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from hpcserve.errors import SlurmError
from hpcserve.launcher.environment import without_slurm

_FIELDS = "%i|%T|%r|%e|%N|%Q|%j"
_WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
_ON_NODES = {"CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "RESIZING"}
_ON_NODES |= {"SIGNALING", "STAGE_OUT", "STOPPED"}
#: A user's own defaults for how these commands filter and print; ours must not depend on them.
_HABITS = ("SQUEUE_", "SACCT_", "SINFO_", "SCANCEL_", "SCONTROL_")


@dataclass(frozen=True)
class SlurmJobInfo:
    """One job (or task of an array) as SLURM sees it.

    state: SLURM's word, such as RUNNING or TIMEOUT.  end_time_s: seconds since the epoch, when
    the time limit ends it or when it ended; None where unlimited or unknown.
    """

    job_id: str
    state: str
    reason: str = ""
    end_time_s: float | None = None
    nodes: str = ""
    name: str = ""

    @property
    def active(self) -> bool:
        """In the queue or on nodes."""
        return self.waiting or self.running

    @property
    def waiting(self) -> bool:
        return self.state in _WAITING

    @property
    def running(self) -> bool:
        return self.state in _ON_NODES


def command(*words: str, timeout_s: float = 10.0) -> str:
    """Run one of SLURM's commands and return its stdout.

    What it prints on stderr is no failure (sites print banners there): only its exit status is.
    Raises SlurmError with what it said.
    """
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            env=_environment(words[0]),
            check=False,
        )
    except FileNotFoundError:
        raise SlurmError(f"there is no command {words[0]} here; is this a login node?") from None
    except OSError as error:  # such as a machine that has no more processes to give
        raise SlurmError(f"cannot run {words[0]}: {error.strerror or error}") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{words[0]} gave no answer in {timeout_s:.0f} s") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise SlurmError(f"{words[0]} failed (exit {done.returncode}): {said}")
    return done.stdout


def _environment(name: str) -> dict[str, str]:
    kept = without_slurm(dict(os.environ))
    if name == "sbatch":  # it hands them on to the job, whose they are
        return kept
    plain = {key: value for key, value in kept.items() if not key.startswith(_HABITS)}
    return {**plain, "SLURM_TIME_FORMAT": "standard"}  # times are parsed


def is_here() -> bool:
    """Whether this machine belongs to a SLURM cluster.

    Raises SlurmError where it does, and the cluster does not answer: then nobody should guess.
    """
    if shutil.which("sbatch") is None:
        return False
    try:
        command("sinfo", "-h", "-o", "%P", timeout_s=5.0)
    except SlurmError as error:
        if "configuration source" in str(error):  # the commands are installed, and no more
            return False
        raise SlurmError(f"{error}; --launcher local does without SLURM") from error
    return True


def jobs(job_ids: Iterable[str], *, timeout_s: float = 3.0) -> dict[str, SlurmJobInfo]:
    """Job id -> what SLURM knows; ids that it has forgotten are left out.

    Raises SlurmError where SLURM does not answer at all: that says nothing about the jobs.
    """
    wanted = list(job_ids)
    if not wanted:
        return {}
    arguments = ("squeue", "-h", "-r", "-t", "all", "-o", _FIELDS, "-j", ",".join(wanted))
    try:
        text = command(*arguments, timeout_s=timeout_s)
    except SlurmError as error:
        if "Invalid job id" not in str(error):
            raise
        text = ""
    found = {info.job_id: info for info in map(_parse, text.splitlines()) if info}
    missing = [one for one in wanted if one not in found and not _has_tasks(one, found)]
    return {**found, **_from_accounting(missing, timeout_s)}


def job(job_id: str, *, timeout_s: float = 3.0) -> SlurmJobInfo | None:
    """One job; for the id of a whole array, its first task."""
    found = jobs([job_id], timeout_s=timeout_s)
    return found.get(job_id) or next(iter(found.values()), None)


def srun_id(job_id: str) -> str:
    """The id by which `srun` knows a job: it takes no `12_3`, since each task of an array is a job
    with a number of its own. Raises SlurmError for a task that SLURM does not know."""
    if "_" not in job_id:
        return job_id
    said = command("squeue", "-h", "-r", "-o", "%A", "-j", job_id).split()
    if not said:
        raise SlurmError(f"SLURM knows no job {job_id} now; see `hpcserve status {job_id}`")
    return said[0]


def _has_tasks(job_id: str, found: Iterable[str]) -> bool:
    return any(one.startswith(f"{job_id}_") for one in found)


def _parse(line: str) -> SlurmJobInfo | None:
    parts = line.split("|", 6)
    if len(parts) < 7:
        return None
    job_id, state, reason, end, nodes, _, name = parts
    return SlurmJobInfo(
        job_id=job_id.strip(),
        state=state,
        reason="" if reason == "None" else reason,
        end_time_s=_seconds(end),
        nodes=nodes,
        name=name,
    )


def _seconds(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None  # N/A, UNLIMITED, NONE


def _from_accounting(job_ids: list[str], timeout_s: float) -> dict[str, SlurmJobInfo]:
    """What `sacct` says; nothing where the site keeps no accounting."""
    if not job_ids:
        return {}
    try:
        text = command(
            *("sacct", "-X", "-n", "-P", "-o", "JobID,State,Reason,End,NodeList,Priority,JobName"),
            *("-j", ",".join(job_ids)),
            timeout_s=timeout_s,
        )
    except SlurmError:
        return {}
    found = {}
    for info in map(_parse, text.splitlines()):
        if info:
            state = info.state.split()[0]  # "CANCELLED by 1000"
            found[info.job_id] = SlurmJobInfo(
                info.job_id, state, info.reason, info.end_time_s, info.nodes, info.name
            )
    return found


def setting(name: str, default: float) -> float:
    """A number of `scontrol show config`, such as KillWait in seconds."""
    first = word(name)
    return float(first) if first.isdigit() else default


def word(name: str) -> str:
    """The first word of a setting of the cluster; empty where SLURM does not say."""
    try:
        text = command("scontrol", "show", "config")
    except SlurmError:
        return ""
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if key.strip() == name:
            return next(iter(value.split()), "")
    return ""


def stdout_path(job_id: str) -> Path | None:
    """Where SLURM writes the batch script's output."""
    value = _of_job(job_id, "StdOut")
    return Path(value) if value else None


def excluded_nodes(job_id: str) -> list[str]:
    value = _of_job(job_id, "ExcNodeList")
    return [] if value in ("", "(null)") else [value]


def _of_job(job_id: str, key: str) -> str:
    """One field of `scontrol show job`; empty where SLURM does not say."""
    try:
        text = command("scontrol", "show", "job", job_id)
    except SlurmError:
        return ""
    found = re.search(rf"(?:^|\s){key}=(.*)", text)
    if not found:
        return ""
    line: str = found[1]
    # The last field of its line may hold spaces (paths do), the others may not.
    return line.strip() if key == "StdOut" else line.partition(" ")[0].strip()
