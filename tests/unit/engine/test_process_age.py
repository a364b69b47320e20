import subprocess
import sys
import time

ASLEEP_S = 0.2
#: Of the clock by which the kernel notes starts.
TICK_S = 0.01
PROGRAM = f"""
import time
from hpcserve.engine.process_age import process_age_s

time.sleep({ASLEEP_S})
print(process_age_s())
"""


def test_it_counts_from_the_start_of_the_process():
    """As seen from outside: this holds on any machine, however slow."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    assert ASLEEP_S <= float(done.stdout) <= time.monotonic() - started + TICK_S
