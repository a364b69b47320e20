"""A job of this machine, seen from outside: its id is that of submitit's controller process."""

from __future__ import annotations

import signal

import psutil

PREFIX = "local-"


def is_local(job_id: str) -> bool:
    return job_id.startswith(PREFIX)


def controller(job_id: str) -> psutil.Process | None:
    """The job's controller, if it runs: a process with its id may long be somebody else's."""
    try:
        process = psutil.Process(int(job_id.removeprefix(PREFIX)))
        return process if "submitit.local._local" in process.cmdline() else None
    except (psutil.NoSuchProcess, psutil.AccessDenied, ValueError):
        return None


def cancel(job_id: str) -> None:
    process = controller(job_id)
    if process is not None:
        process.send_signal(signal.SIGTERM)  # it passes the signal on to the script
