"""The end of a job, begun: no new work, what runs is finished, then the nodes are ended."""

from __future__ import annotations

import signal
import time

from hpcserve.errors import OutputError
from hpcserve.launcher.cause import Cause
from hpcserve.launcher.child import Child
from hpcserve.launcher.files import write_json
from hpcserve.launcher.job_dir import JobDir
from hpcserve.log import get_logger

log = get_logger(__name__)

#: After SIGTERM the nodes get this long at most, then SIGKILL.
_KILL_AFTER_S = 10.0


class Drain:
    """why: what began it; None as long as nothing did."""

    def __init__(self, job_dir: JobDir, incarnation: str, kill_wait_s: float) -> None:
        self._job_dir = job_dir
        self._incarnation = incarnation
        self._kill_after_s = min(_KILL_AFTER_S, kill_wait_s)
        self._ends = float("inf")
        self.why: Cause | None = None

    @property
    def begun(self) -> bool:
        return self.why is not None

    def begin(self, why: Cause, seconds: float) -> bool:
        """Ask the nodes to finish; True for the first reason, a later one can only hurry."""
        ends = time.monotonic() + seconds
        if self.begun:
            self._ends = min(self._ends, ends)
            return False
        self.why, self._ends = why, ends
        log.info("draining for at most %.0f s: %s", seconds, why)
        content = {
            "drain": True,
            "drain_s": seconds,
            "why": str(why),
            "incarnation": self._incarnation,
        }
        try:
            write_json(self._job_dir.control, content)
        except OutputError as error:  # the nodes get a signal at the end all the same
            log.warning("%s; going on without", error)
        return True

    def at_once(self, why: Cause) -> None:
        """There is nothing left to finish."""
        log.error("%s", why)
        self.why, self._ends = why, time.monotonic()

    def enforce(self, child: Child) -> None:
        """When its time is over, end the nodes."""
        if time.monotonic() < self._ends:
            return
        log.info("ending the nodes")
        child.send(signal.SIGTERM)
        give_up = time.monotonic() + self._kill_after_s
        while child.poll() is None and time.monotonic() < give_up:
            time.sleep(0.05)
        child.send(signal.SIGKILL)
        self._ends = time.monotonic() + 1.0
