"""Signals, noted when they come and handled in the main loop, where it is safe to act."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Iterable
from types import FrameType

#: Ends the job soon: SLURM's own (cancel, time limit, preemption) and Ctrl-C.
STOP = (signal.SIGTERM, signal.SIGINT)
#: An early warning: time to finish up.
WARN = (signal.SIGUSR1, signal.SIGUSR2)


class SignalInbox:
    """Collects signals from the moment it is made; SIGCONT, which SLURM sends first, is dropped."""

    def __init__(self, caught: Iterable[signal.Signals] = (*STOP, *WARN)) -> None:
        self._received: deque[signal.Signals] = deque()
        for one in caught:
            signal.signal(one, self._note)
        signal.signal(signal.SIGCONT, lambda *_: None)

    def _note(self, number: int, _: FrameType | None) -> None:
        # Nothing that takes a lock: the handler may run in the midst of anything.
        self._received.append(signal.Signals(number))

    def ignore(self) -> None:
        """From now on drop them, in commands that we start as well: ignored ones are inherited."""
        for one in (*STOP, *WARN):
            signal.signal(one, signal.SIG_IGN)

    def take(self) -> list[signal.Signals]:
        """Signals since the last call, in order."""
        taken = []
        while self._received:
            taken.append(self._received.popleft())
        return taken

    def wait(self, seconds: float) -> None:
        """Sleep, but wake soon after a signal."""
        deadline = time.monotonic() + seconds
        while not self._received and time.monotonic() < deadline:
            time.sleep(min(0.05, max(0.0, deadline - time.monotonic())))


def end_group(pid: int, number: signal.Signals) -> None:
    """Send a signal to the process group that `pid` leads; gone already is fine."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return
