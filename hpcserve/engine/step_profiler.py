"""A torch profiler trace of one rank's steps between two commands."""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
from pathlib import Path

import torch

from hpcserve.distributed.topology import Place
from hpcserve.errors import EngineError

#: Of gzip: the engine stands still meanwhile, and 9 takes five times as long for a twentieth less.
_LEVEL = 6


class StepProfiler:
    """Used by the thread that runs the steps.  place: of the rank, in the name of its file."""

    def __init__(self, place: Place) -> None:
        self._place = place
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
        if not os.access(folder, os.W_OK | os.X_OK):
            raise EngineError(f"cannot write profiles to {folder}: no permission")
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        profile = torch.profiler.profile(activities=activities)
        try:
            profile.start()
        except RuntimeError as error:  # another profiler has this process
            raise EngineError(f"torch's profiler does not start: {error}") from error
        self._running = profile, folder

    def stop(self, moment: str) -> Path:
        """Write the trace (for chrome://tracing and Perfetto) and return its path.

        moment: part of the file's name, the same for all ranks.
        Raises EngineError where none is being taken, or the trace cannot be written.
        """
        if self._running is None:
            raise EngineError("no profile is being taken")
        (profile, folder), self._running = self._running, None
        profile.stop()
        place = self._place
        rank = f"dp{place.dp_rank}-pp{place.pp_rank}-tp{place.tp_rank}"
        path = folder / f"hpcserve-{moment}-{rank}.trace.json.gz"
        try:
            _write(profile, path)
        except (OSError, RuntimeError) as error:  # a full disk is no reason to end the engine
            raise EngineError(f"cannot write {path}: {error}") from error
        return path

    def discard(self) -> None:
        """Stop without a trace; nothing where none is being taken."""
        if self._running is not None:
            (profile, _), self._running = self._running, None
            profile.stop()


def _write(profile: torch.profiler.profile, path: Path) -> None:
    """All of the trace, or nothing that stays.

    torch would write it first, unpacked, where temporary files go: a node's /tmp, often small or
    memory, is no place for it.
    """
    with tempfile.TemporaryDirectory(
        dir=path.parent, prefix=".hpcserve-", ignore_cleanup_errors=True
    ) as folder:
        plain, packed = Path(folder, "trace.json"), Path(folder, "trace.json.gz")
        profile.export_chrome_trace(str(plain))
        if not _is_whole(plain):
            raise OSError(f"torch wrote a part of the trace; the disk of {path.parent} may be full")
        with plain.open("rb") as source, gzip.open(packed, "wb", _LEVEL) as target:
            shutil.copyfileobj(source, target)
        packed.replace(path)


def _is_whole(trace: Path) -> bool:
    """Of a disk that gets full torch only logs, and leaves no file or a part of one."""
    if not trace.is_file():
        return False
    with trace.open("rb") as file:
        file.seek(max(0, trace.stat().st_size - 8))
        return file.read().rstrip().endswith(b"}")
