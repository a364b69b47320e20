"""How a job goes on after its end: requeued by SLURM, or by a job that waits for its end."""

from __future__ import annotations

import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from hpcserve.errors import OutputError, SlurmError
from hpcserve.launcher import slurm_query
from hpcserve.launcher.base import JobEnvironment
from hpcserve.launcher.job_dir import JobDir, register
from hpcserve.log import get_logger

log = get_logger(__name__)


class FollowUp(ABC):
    def prepare(self) -> None:  # noqa: B027 - most kinds have nothing to prepare
        """Called once at the start: what must exist even if this job is killed outright."""

    @abstractmethod
    def go_on(self, exclude: Sequence[str]) -> str:
        """Make the job run again, not on the nodes `exclude`; returns what was done.

        Raises SlurmError where SLURM refuses.
        """

    def drop(self) -> None:  # noqa: B027 - most kinds have nothing to drop
        """The job is over for good: take back what `prepare` did."""


class NoFollowUp(FollowUp):
    def go_on(self, exclude: Sequence[str]) -> str:
        raise SlurmError("outside of SLURM nobody starts the job again")


class Requeue(FollowUp):
    """The same job once more, under the same id; a site without requeueing gets a chained job."""

    def __init__(self, environment: JobEnvironment, fallback: FollowUp) -> None:
        self._environment = environment
        self._fallback = fallback

    def go_on(self, exclude: Sequence[str]) -> str:
        from submitit.slurm.slurm import SlurmJobEnvironment

        job_id = self._environment.job_id
        excluded = slurm_query.excluded_nodes(job_id) if exclude else []
        try:
            # submitit's own requeue; its decision when to is not used: it tells time-outs from
            # preemptions by the share of the time limit that has passed, we by SLURM's word.
            SlurmJobEnvironment()._requeue(0)
        except (subprocess.SubprocessError, OSError) as error:
            log.warning("SLURM does not requeue job %s (%s); submitting a new one", job_id, error)
            return self._fallback.go_on(exclude)
        if exclude:  # SLURM takes it for pending jobs only, so we must be quicker than our end
            leave_out(job_id, excluded, exclude)
        return f"requeued job {job_id}"


def leave_out(job_id: str, excluded: Sequence[str], more: Sequence[str]) -> None:
    """Keep a job that waits off the nodes `more` as well."""
    names = ",".join([*excluded, *more])
    try:
        slurm_query.command("scontrol", "update", f"JobId={job_id}", f"ExcNodeList={names}")
    except SlurmError as error:
        log.warning("the next run may get %s again: %s", names, error)


class Chain(FollowUp):
    """A follow-up job that waits for this one's end, so that not even SIGKILL loses it.

    It ends at once where it finds the run directory's work done.
    """

    def __init__(self, environment: JobEnvironment, job_dir: JobDir, *, early: bool) -> None:
        self._environment = environment
        self._job_dir = job_dir
        self._early = early
        self._job_id: str | None = None

    def prepare(self) -> None:
        if not self._early:
            return
        try:
            self._job_id = self._of_an_earlier_run()
            if self._job_id is None:
                self._submit(())
        except SlurmError as error:
            log.warning("no follow-up job yet: %s; trying again at the end", error)

    def _of_an_earlier_run(self) -> str | None:
        """SLURM itself may have started this job anew, after a node failed: then one waits."""
        ids = self._job_dir.read_job().get("job_ids", [])
        own = self._environment.job_id
        later = ids[ids.index(own) + 1 :] if own in ids else []
        known = slurm_query.jobs(later)
        return next((one for one in reversed(later) if one in known and known[one].active), None)

    def go_on(self, exclude: Sequence[str]) -> str:
        if self._job_id is None:
            self._submit(exclude)
        elif exclude:
            leave_out(self._job_id, slurm_query.excluded_nodes(self._job_id), exclude)
        return f"job {self._job_id} goes on after this one"

    def drop(self) -> None:
        if self._job_id is None:
            return
        try:
            slurm_query.command("scancel", self._job_id)
        except SlurmError as error:
            log.warning(
                "follow-up job %s stays queued, and will end at once: %s", self._job_id, error
            )

    def _submit(self, exclude: Sequence[str]) -> None:
        job_id, _, task = self._environment.job_id.partition("_")
        after = f"{job_id}_{task}" if task else job_id
        words = ["sbatch", "--parsable", f"--dependency=afterany:{after}"]
        words += ["--kill-on-invalid-dep=yes"]
        words += [f"--array={task}"] if task else []
        if exclude:  # on the command line it would replace what the script says
            names = [*slurm_query.excluded_nodes(self._environment.job_id), *exclude]
            words.append(f"--exclude={','.join(names)}")
        answer = slurm_query.command(*words, str(self._script(job_id)), timeout_s=30)
        self._job_id = parse_job_id(answer) + (f"_{task}" if task else "")
        try:
            self._job_dir.add_job_ids(self._environment.job_id, self._job_id)
            register(self._job_id, self._job_dir.path)
        except OutputError as error:  # it is queued all the same
            log.warning("follow-up job %s: %s", self._job_id, error)

    def _script(self, job_id: str) -> Path:
        """The script of this job; SLURM keeps a copy of those that were submitted by hand."""
        if not self._job_dir.script.is_file():
            slurm_query.command(
                "scontrol", "write", "batch_script", job_id, str(self._job_dir.script)
            )
        return self._job_dir.script


def parse_job_id(answer: str) -> str:
    """The id from `sbatch --parsable` ("ID" or "ID;CLUSTER"), whatever the site prints around it."""
    for line in reversed(answer.splitlines()):
        job_id = line.strip().partition(";")[0]
        if job_id.isdigit():
            return job_id
    raise SlurmError(f"sbatch gave no job id, but {answer.strip()[-200:]!r}")
