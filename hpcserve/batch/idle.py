"""When a worker with nothing left to take ends, so that its GPUs are free before the run is over."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping

from hpcserve.batch.lease import Claims
from hpcserve.config.batch import BatchConfig

#: Longer than a worker that was killed is taken for alive: what it leaves is taken first.
ARRAY_TIMEOUT_S = 120.0


def idle_timeout_s(batch: BatchConfig, environ: Mapping[str, str] | None = None) -> float:
    """Where nobody says it: of tasks of a job array only, since the array ends when all have.

    A worker that somebody started by hand ends when the run does, and its exit code says how.
    """
    environ = os.environ if environ is None else environ
    if batch.idle_timeout_s is not None:
        return batch.idle_timeout_s or math.inf
    return ARRAY_TIMEOUT_S if environ.get("SLURM_ARRAY_TASK_ID") else math.inf


class IdleWatch:
    """Asked again and again while there is nothing to take.

    A worker leaves when it has waited for `timeout_s`, all that is left is in the hands of workers
    that live, and another idle one stands by: that one takes over what a dead or slow worker does
    not bring to its end. So the last idle worker never leaves, whatever it costs.
    """

    def __init__(self, claims: Claims, timeout_s: float) -> None:
        self._claims = claims
        self._timeout_s = timeout_s
        self._since: float | None = None

    def is_over(self) -> bool:
        """Nothing was there to take just now: whether to go. Raises OSError."""
        if math.isinf(self._timeout_s):
            return False
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if self._claims.stand_by():
            return False
        return now - self._since >= self._timeout_s and self._claims.others_live()

    def end(self) -> None:
        """There is work again."""
        self._since = None
        self._claims.stand_down()
