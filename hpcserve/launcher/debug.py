"""`--launcher debug`: a job's script in the foreground of this terminal, by submitit's debug executor.

The same script, supervisor and files as anywhere; what is wrong with them shows at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from submitit.local.debug import DebugExecutor

from hpcserve.errors import ConfigError
from hpcserve.launcher import local_job
from hpcserve.launcher.base import Launcher
from hpcserve.launcher.environment import LOCAL_JOB_ID
from hpcserve.launcher.files import write_atomically
from hpcserve.launcher.job_dir import JobDir


class DebugLauncher(Launcher):
    """Job ids are `local-PID`, the process id of the command itself. `submit` starts nothing yet."""

    def submit(self, script: str, run_dir: Path, *, replicas: int = 1) -> str:
        if replicas > 1:
            raise ConfigError("--replicas needs SLURM: in the foreground there is one server")
        write_atomically(JobDir(run_dir).script, script)
        return f"{local_job.PREFIX}{os.getpid()}"

    def cancel(self, job_id: str) -> None:
        local_job.cancel(job_id)


def run(run_dir: Path) -> int:
    """Run what `submit` wrote, to its end; returns its exit code.

    Ctrl-C reaches the script as well: it drains, and so does SIGTERM.
    """
    job = DebugExecutor(run_dir / "submitit").submit(_run_script, JobDir(run_dir).script)
    return int(job.result())


def _run_script(script: Path) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is the script's
    process = subprocess.Popen(
        ["bash", str(script)],
        env={**os.environ, LOCAL_JOB_ID: str(os.getpid())},
        preexec_fn=_hear_ctrl_c,
    )
    signal.signal(signal.SIGTERM, lambda number, _: process.send_signal(number))
    return process.wait()


def _hear_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
