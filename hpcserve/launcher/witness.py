"""What ended a job, by its logs, its signals and the clock."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from hpcserve.launcher import cause as causes
from hpcserve.launcher.cause import Cause
from hpcserve.launcher.job_dir import JobDir

#: Closer to the end than this, a signal is the time limit's.
_LIMIT_IS_NEAR_S = 15.0
#: slurmstepd writes its line about the moment of the signal.
_LINE_COMES_S = 0.2


class Witness:
    """Reads what the logs say since it was made: earlier runs of a job stand in the same files."""

    def __init__(self, job_dir: JobDir, num_nodes: int) -> None:
        ranks = (job_dir.rank_log(rank) for rank in range(num_nodes))
        # The batch script's own log first: the last error line is an engine's.
        self._starts = {path: _size(path) for path in (job_dir.job_log, *ranks)}
        self._job_log = job_dir.job_log

    def of_signal(self, number: signal.Signals, seconds_left: float) -> Cause:
        """SLURM sends the same signal for everything; its log line and the clock tell which."""
        time.sleep(_LINE_COMES_S)
        found = self.of_slurm()
        if found is not None:
            return found
        if seconds_left < _LIMIT_IS_NEAR_S:
            return Cause(causes.TIME_LIMIT, "SLURM's time limit was reached")
        return Cause(causes.CANCELLED, f"{number.name}, by scancel or an administrator")

    def of_slurm(self) -> Cause | None:
        """What SLURM wrote into the batch script's log when it began to end the job."""
        for line in reversed(self._tail(self._job_log)[-20:]):
            if "DUE TO JOB REQUEUE" in line:
                return Cause(causes.REQUEUED, line.strip())
            found = causes.from_logs([line])
            if found.kind in (causes.TIME_LIMIT, causes.PREEMPTED, causes.NODE_FAILURE):
                return found
        return None

    def of_end(self, exit_code: int) -> Cause:
        """Of nodes that ended by themselves."""
        lines = [line for path in self._starts for line in self._tail(path)]
        return causes.from_logs(lines, exit_code)

    def _tail(self, path: Path) -> list[str]:
        return causes.tail(path, self._starts[path])


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
