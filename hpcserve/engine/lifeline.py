"""A child process ends with the one that started it, however that one ends."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import threading

_WATCH_PERIOD_S = 1.0
_PR_SET_PDEATHSIG = 1


def end_with_parent_thread() -> None:
    """Let the kernel end us in the moment in which the thread that started us ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def leave_signals_to_parent() -> None:
    """Ctrl-C and SIGTERM are not for us, even where they reach us: SLURM may send them to every
    process of a job. The server drains first, and then tells its engine to end.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def hold(parent: int) -> None:
    """End this process at once when `parent` is gone, or closes our standard input.

    parent: pid, taken before anything slow happened. What stands in standard input must have been
    read.
    """
    threading.Thread(target=_watch, args=(parent,), name="lifeline", daemon=True).start()


def _watch(parent: int) -> None:
    # The pipe may outlive the parent in a process that it forked; its pid cannot.
    stdin = sys.stdin.fileno()
    while os.getppid() == parent:
        readable, _, _ = select.select([stdin], [], [], _WATCH_PERIOD_S)
        if readable and not os.read(stdin, 1):
            break
    os._exit(1)
