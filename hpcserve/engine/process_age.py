"""How long this process has run."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

#: In /proc/self/stat, of the fields after the program's name: ticks from the boot to the start.
_STARTED = 19


def process_age_s() -> float:
    """Seconds since this process was started, on Linux to a hundredth.

    psutil's start is one by the calendar, which is up to a second off: the kernel gives the moment
    of the boot in whole seconds.
    """
    if sys.platform == "linux":
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started_s = int(fields[_STARTED]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started_s
    import psutil

    return time.time() - psutil.Process().create_time()
