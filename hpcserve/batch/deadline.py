"""When this job ends, and whether what begins now can still be finished."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path

from hpcserve.batch.durable import read_json
from hpcserve.log import get_logger

log = get_logger(__name__)

_REFRESH_S = 30.0
#: SLURM's own word, set in every job.
_SLURM_END = "SLURM_JOB_END_TIME"
#: Where the job's supervisor keeps the end that it last heard of: administrators extend limits.
_RUN_DIR = "HPCSERVE_RUN_DIR"


class Deadline:
    """end_s: given by the user, in seconds since the epoch; None asks the job's environment.

    margin_s: what the end of the run itself takes: writing, syncing, ending the engine.
    """

    def __init__(
        self,
        end_s: float | None,
        margin_s: float,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._given_s = end_s
        self._margin_s = margin_s
        self._environ = os.environ if environ is None else environ
        self._end_s: float | None = None
        self._next_read = -math.inf

    def seconds_left(self) -> float:
        """Until in-flight rows are given up; infinite where there is no end."""
        end_s = self._given_s if self._given_s is not None else self._read()
        return math.inf if end_s is None else end_s - self._margin_s - time.time()

    def admits(self, row_s: float) -> bool:
        """Whether a row that takes `row_s` and starts now is finished in time."""
        return row_s < self.seconds_left()

    def _read(self) -> float | None:
        if time.monotonic() >= self._next_read:
            self._next_read = time.monotonic() + _REFRESH_S
            self._end_s = self._from_supervisor() or self._from_slurm()
        return self._end_s

    def _from_supervisor(self) -> float | None:
        folder = self._environ.get(_RUN_DIR)
        try:
            state = read_json(Path(folder) / "state.json") if folder else None
        except OSError as error:  # SLURM's own word will do
            log.debug("the job's state: %s", error)
            return None
        end_s = state.get("end_time") if isinstance(state, dict) else None
        return float(end_s) if isinstance(end_s, int | float) else None

    def _from_slurm(self) -> float | None:
        text = self._environ.get(_SLURM_END, "")
        return float(text) if text.isdigit() and int(text) > 0 else None
