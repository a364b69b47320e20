"""A torch profiler trace of the steps between two commands."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

from hpcserve.errors import EngineError


class StepProfiler:
    """Used by the thread that runs the steps."""

    def __init__(self) -> None:
        self._running: tuple[torch.profiler.profile, Path] | None = None

    def start(self, folder: Path) -> None:
        """Record from now on; the trace will lie in `folder`, which is made.

        Raises EngineError where one runs already, or the folder cannot be written.
        """
        if self._running is not None:
            raise EngineError("a profile is being taken already; stop it first")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EngineError(f"cannot write profiles to {folder}: {error.strerror}") from error
        if not os.access(folder, os.W_OK):
            raise EngineError(f"cannot write profiles to {folder}: no permission")
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        profile = torch.profiler.profile(activities=activities)
        profile.start()
        self._running = profile, folder

    def stop(self) -> Path:
        """Write the trace (for chrome://tracing and Perfetto) and return its path.

        Raises EngineError where none is being taken, or the trace cannot be written.
        """
        if self._running is None:
            raise EngineError("no profile is being taken")
        (profile, folder), self._running = self._running, None
        profile.stop()
        moment = time.strftime("%Y%m%d-%H%M%S")
        path = folder / f"hpcserve-{moment}-{os.getpid()}.trace.json.gz"
        try:
            profile.export_chrome_trace(str(path))
        except (OSError, RuntimeError) as error:  # a full disk is no reason to end the engine
            raise EngineError(f"cannot write {path}: {error}") from error
        return path
