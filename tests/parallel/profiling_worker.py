"""A rank whose folder's name says what befalls rank 1: "refused" at the start, "fatal" at the stop."""

import os
import signal
from pathlib import Path

from hpcserve.engine import worker_main

if __name__ == "__main__":
    from hpcserve.engine.step_profiler import StepProfiler
    from hpcserve.errors import EngineError

    start, stop = StepProfiler.start, StepProfiler.stop

    def start_or_refuse(profiler: StepProfiler, folder: Path) -> None:
        if profiler._place.rank == 1 and folder.name == "refused":
            raise EngineError(f"cannot write profiles to {folder}: no permission")
        start(profiler, folder)

    def stop_or_die(profiler: StepProfiler, moment: str) -> Path:
        if profiler._place.rank == 1 and profiler._running[1].name == "fatal":  # type: ignore[index]
            os.kill(os.getpid(), signal.SIGKILL)
        return stop(profiler, moment)

    StepProfiler.start = start_or_refuse  # type: ignore[method-assign]
    StepProfiler.stop = stop_or_die  # type: ignore[method-assign]
    worker_main.main()
