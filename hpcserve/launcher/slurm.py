"""Submission through submitit: our template is its script's text, our query its job's watcher."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.slurm.slurm import SlurmExecutor, SlurmInfoWatcher, SlurmJob

from hpcserve.errors import SlurmError
from hpcserve.launcher import slurm_query
from hpcserve.launcher.base import Launcher
from hpcserve.launcher.environment import without_slurm
from hpcserve.launcher.files import write_atomically
from hpcserve.launcher.followup import parse_job_id
from hpcserve.launcher.job_dir import JobDir


class QueueWatcher(SlurmInfoWatcher):
    """States by `squeue`: submitit asks `sacct` alone, which many sites do not run."""

    def _make_command(self) -> list[str] | None:
        waiting = {job_id.split("_")[0] for job_id in self._registered - self._finished}
        if not waiting:
            return None
        return ["squeue", "-h", "-r", "-t", "all", "-o", "%i|%T", "-j", ",".join(sorted(waiting))]

    def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
        text = string.decode() if isinstance(string, bytes) else string
        rows = [line.partition("|") for line in text.splitlines()]
        return {job_id: {"JobID": job_id, "State": state} for job_id, _, state in rows}


class TemplateJob(SlurmJob[Any]):
    """submitit's handle of a job: `cancel()`, `state`, `done()`, `job_id`. It has no result."""

    watcher = QueueWatcher(delay_s=60)


class TemplateExecutor(SlurmExecutor):
    """Submits a given script instead of one of submitit's, without pickles.

    A pickle would bind the nodes' Python to the login node's, and scripts that are submitted by
    hand have none; so the script itself says what runs.
    """

    job_class = TemplateJob

    def __init__(self, folder: Path, script: str) -> None:
        super().__init__(folder)
        self._script = script

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        return self._script

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        # `env -u`: what an outer salloc or SBATCH_* says must not leak into the job.
        leaking = sorted(set(os.environ) - set(without_slurm(dict(os.environ))))
        unset = [word for name in leaking for word in ("-u", name)]
        return ["env", *unset, "sbatch", "--parsable", str(submission_file_path)]

    @staticmethod
    def _get_job_id_from_submission_command(string: bytes | str) -> str:
        return parse_job_id(string.decode() if isinstance(string, bytes) else string)

    def submit_script(self) -> Any:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self._submit_command("")


class SlurmLauncher(Launcher):
    def submit(self, script: str, run_dir: Path, *, replicas: int = 1) -> str:
        """Submit, and keep the script in the run directory.

        Raises SlurmError with sbatch's own words where it refuses.
        """
        job_dir = JobDir(run_dir)
        write_atomically(job_dir.script, script)
        if shutil.which("sbatch") is None:
            raise SlurmError("there is no command sbatch here; submit from a login node")
        if shutil.which("srun") is None:
            # submitit refuses to work without `srun`, which a login node does not need.
            return parse_job_id(
                slurm_query.command("sbatch", "--parsable", str(job_dir.script), timeout_s=60)
            )
        try:
            return str(TemplateExecutor(run_dir / "submitit", script).submit_script().job_id)
        except (FailedJobError, FailedSubmissionError) as error:
            raise SlurmError(f"sbatch refused the job: {_last_words(str(error))}") from error

    def cancel(self, job_id: str) -> None:
        slurm_query.command("scancel", job_id)


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower() and "sbatch" in line.lower()]
    return (errors or lines or ["no reason given"])[-1]
