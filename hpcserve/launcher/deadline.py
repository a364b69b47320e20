"""When SLURM will end the job. Read again from time to time: administrators extend limits."""

from __future__ import annotations

import time
from collections.abc import Callable

from hpcserve.errors import SlurmError
from hpcserve.launcher import slurm_query

REFRESH_S = 60.0


class Deadline:
    """end_time_s: seconds since the epoch; None as long as there is no limit, or none is known.

    A SLURM that does not answer leaves the last known end in force.
    """

    def __init__(self, read: Callable[[], float | None], refresh_s: float = REFRESH_S) -> None:
        self._read = read
        self._refresh_s = refresh_s
        self._next_read = 0.0
        self.end_time_s: float | None = None

    def refresh(self) -> None:
        if time.monotonic() < self._next_read:
            return
        self._next_read = time.monotonic() + self._refresh_s
        try:
            self.end_time_s = self._read()
        except SlurmError:
            return

    def confirm(self) -> None:
        """Read it now, before something is done about it: SLURM may have moved the end since, for a
        job that was suspended, or whose limit was extended."""
        self._next_read = 0.0
        self.refresh()

    def seconds_left(self) -> float:
        """Seconds until the end; infinite where there is none."""
        return float("inf") if self.end_time_s is None else self.end_time_s - time.time()


def of_slurm_job(job_id: str) -> Deadline:
    def read() -> float | None:
        info = slurm_query.job(job_id)
        return info.end_time_s if info and info.running else None

    return Deadline(read)


def never() -> Deadline:
    return Deadline(lambda: None)
