"""Near the end of a job no request is taken that could not end before it."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

from hpcserve.errors import OutOfTimeError

_REREAD_S = 2.0
#: After the last answer a job takes this long to be gone; only then can its successor come.
_SUCCESSION_S = 30.0


class TimeLeft:
    """path: the launcher's file, {"finish_by": seconds since the epoch}; None where nobody ends us.

    It may come later, and change: administrators extend limits.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._next_read = 0.0
        self._finish_by = math.inf

    def seconds(self) -> float:
        """Until the last answer must be out; infinite where there is no end."""
        now = time.monotonic()
        if self._path is not None and now >= self._next_read:
            self._next_read = now + _REREAD_S
            self._finish_by = _read(self._path)
        return self._finish_by - time.time()

    def check(self, needed_s: float) -> None:
        """Raises OutOfTimeError for a request that takes `needed_s` where less is left."""
        left_s = self.seconds()
        if needed_s > left_s:
            raise OutOfTimeError(needed_s, left_s, retry_after_s=max(left_s, 0.0) + _SUCCESSION_S)


def _read(path: Path) -> float:
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["finish_by"])
    except (OSError, ValueError, KeyError, TypeError):
        return math.inf  # there is no end, none is known yet, or a shared disk stutters
