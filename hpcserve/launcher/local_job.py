"""A job of this machine, seen from outside: its id is that of the process that looks after it."""

from __future__ import annotations

import signal

import psutil

PREFIX = "local-"


def is_local(job_id: str) -> bool:
    return job_id.startswith(PREFIX)


def controller(job_id: str) -> psutil.Process | None:
    """submitit's controller of the job, or `hpcserve submit --launcher debug`, if it runs.

    A process with its id may long be somebody else's.
    """
    try:
        process = psutil.Process(int(job_id.removeprefix(PREFIX)))
        words = process.cmdline()
        is_debug = "submit" in words and any("hpcserve" in word for word in words)
        return process if is_debug or "submitit.local._local" in words else None
    except (psutil.NoSuchProcess, psutil.AccessDenied, ValueError):
        return None


def cancel(job_id: str) -> None:
    process = controller(job_id)
    if process is not None:
        process.send_signal(signal.SIGTERM)  # it passes the signal on to the script
