"""`--jobs N` on one machine: N processes of the same command, which share the run's rows."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from hpcserve.batch.run_dir import RunDir
from hpcserve.errors import ConfigError


def run_jobs(argv: Sequence[str], num_jobs: int, *, fresh_output: str | None) -> None:
    """Run all but one of the workers beside this process, and wait for none: they end when the
    run's rows are finished, as this process does, and with it.

    fresh_output: forget the run for this output first, once for all of them.
    """
    if fresh_output is not None:
        RunDir.of_output(Path(fresh_output)).discard()
    words = [word for word in without_option(argv, "--jobs") if word not in _ONCE]
    for number in range(1, num_jobs):
        environment = {**os.environ, **device_share(os.environ, number, num_jobs)}
        command = [sys.executable, "-m", "hpcserve", "batch", *words]
        subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
    os.environ.update(device_share(os.environ, 0, num_jobs))


_ONCE = ("--fresh", "--overwrite")


def without_option(argv: Sequence[str], flag: str) -> list[str]:
    """The words without `flag` and its value."""
    kept: list[str] = []
    skip = False
    for word in argv:
        if skip:
            skip = False
        elif word == flag:
            skip = True
        elif not word.startswith(f"{flag}="):
            kept.append(word)
    return kept


def device_share(environ: Mapping[str, str], number: int, num_jobs: int) -> dict[str, str]:
    """The GPUs of worker `number`: equal shares of the visible ones. Raises ConfigError."""
    visible = [one for one in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
    if not visible:
        return {}
    if len(visible) % num_jobs:
        raise ConfigError(f"--jobs {num_jobs}: {len(visible)} visible GPUs cannot be shared evenly")
    size = len(visible) // num_jobs
    return {"CUDA_VISIBLE_DEVICES": ",".join(visible[number * size : (number + 1) * size])}
