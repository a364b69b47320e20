"""The one process that a supervisor starts: `srun ...`, or the command itself without SLURM."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Sequence

from hpcserve.errors import LauncherError
from hpcserve.launcher.signals import end_group


class Child:
    """A command in a session of its own, so that our signals do not reach it by accident."""

    def __init__(self, command: Sequence[str]) -> None:
        try:
            self._process = subprocess.Popen(command, start_new_session=True)
        except OSError as error:
            raise LauncherError(f"cannot start {command[0]}: {error.strerror}") from error
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def send(self, number: signal.Signals) -> None:
        """Signal the command and all it started in its session."""
        if self.poll() is None:
            end_group(self.pid, number)


class DetachedChild(Child):
    """A command that is no descendant of ours, and yet reports its end to us.

    Under `proctrack/linuxproc` SLURM signals every descendant of the batch script. `srun` answers
    SIGTERM by killing its tasks at once, which would leave no time to drain; out of the tree it
    does not get the signal, while its tasks get it from SLURM. (Under proctrack/cgroup SLURM
    signals the batch script alone, and an ordinary child will do.)
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._reports, theirs = os.pipe()
        self._code: int | None = None
        first = os.fork()
        if first == 0:
            os.close(self._reports)
            _detach_and_run(command, theirs)
        os.close(theirs)
        os.waitpid(first, 0)
        line = self._read_line()
        if not line.isdigit():
            raise LauncherError(f"cannot start {command[0]}: {line or 'it ended at once'}")
        self.pid = int(line)

    def poll(self) -> int | None:
        if self._code is None and select.select([self._reports], [], [], 0)[0]:
            line = self._read_line()
            # No word from the process between us: it was killed, and so was the command.
            self._code = int(line) if line else -int(signal.SIGKILL)
            os.close(self._reports)
        return self._code

    def _read_line(self) -> str:
        text = b""
        while not text.endswith(b"\n"):
            byte = os.read(self._reports, 1)
            if not byte:
                break
            text += byte
        return text.decode("utf-8", errors="replace").strip()


def _detach_and_run(command: Sequence[str], reports: int) -> None:
    """In the forked process: leave the tree, run the command, report its id and exit code."""
    os.setsid()
    if os.fork():
        os._exit(0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    try:
        process = subprocess.Popen(command, start_new_session=True, restore_signals=True)
    except OSError as error:
        os.write(reports, f"{error.strerror}\n".encode())
        os._exit(127)
    os.write(reports, f"{process.pid}\n".encode())
    code = process.wait()
    os.write(reports, f"{code}\n".encode())
    os._exit(0)
