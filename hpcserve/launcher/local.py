"""A job on this machine, without SLURM: the same script and files, under submitit's controller."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from submitit.local.local import LocalExecutor

from hpcserve.errors import ConfigError
from hpcserve.launcher import local_job
from hpcserve.launcher.base import Launcher
from hpcserve.launcher.files import write_atomically
from hpcserve.launcher.job_dir import JobDir

_NO_LIMIT_MIN = 60.0 * 24 * 3650


class LocalLauncher(Launcher):
    """Job ids are `local-PID`, the process id of submitit's controller."""

    def submit(self, script: str, run_dir: Path, *, replicas: int = 1) -> str:
        if replicas > 1:
            raise ConfigError("--replicas needs SLURM: on one machine start several servers")
        job_dir = JobDir(run_dir)
        write_atomically(job_dir.script, script)
        executor = LocalExecutor(run_dir / "submitit")
        executor.update_parameters(timeout_min=_NO_LIMIT_MIN, gpus_per_node=0)
        with _deaf_to_the_terminal():
            job: Any = executor._submit_command(f"bash {shlex.quote(str(job_dir.script))}")
        return f"{local_job.PREFIX}{job.job_id}"

    def cancel(self, job_id: str) -> None:
        local_job.cancel(job_id)


@contextlib.contextmanager
def _deaf_to_the_terminal() -> Iterator[None]:
    """What a job started here inherits: no terminal, no pipe that somebody reads to its end.

    submitit's controller takes our signals' settings and our standard streams as they are. Ctrl-C
    and a closed terminal are not meant for the job, and ignored signals are inherited.
    """
    before = {one: signal.signal(one, signal.SIG_IGN) for one in (signal.SIGINT, signal.SIGHUP)}
    sys.stdout.flush()
    sys.stderr.flush()
    streams = {number: os.dup(number) for number in (0, 1, 2)}
    nowhere = os.open(os.devnull, os.O_RDWR)
    try:
        for number in streams:
            os.dup2(nowhere, number)
        yield
    finally:
        for number, kept in streams.items():
            os.dup2(kept, number)
            os.close(kept)
        os.close(nowhere)
        for one, handler in before.items():
            signal.signal(one, handler)
