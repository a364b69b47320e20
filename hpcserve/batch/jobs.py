"""`--jobs N` on one machine: N processes of the same command, which share the run's rows."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from hpcserve.batch.files import STANDARD
from hpcserve.config.batch import BatchConfig
from hpcserve.errors import ConfigError


@contextmanager
def other_workers(
    argv: Sequence[str], batch: BatchConfig, begin: Callable[[], object]
) -> Iterator[BatchConfig]:
    """Within the block, all but one of the workers run beside this process. They end when the
    run's rows are finished, or are told to when the block ends before.

    begin: what is done once for all of them, starting over where that is asked.
    Gives what is left for this process.
    """
    if STANDARD in (*batch.inputs, batch.output):
        raise ConfigError("--jobs: workers cannot share stdin or stdout; name files")
    num_jobs = batch.jobs
    shares = [device_share(os.environ, number, num_jobs) for number in range(num_jobs)]
    begin()
    words = [word for word in without_option(argv, "--jobs") if word not in _ONCE]
    others = []
    for number in range(1, num_jobs):
        environment = {**os.environ, **shares[number]}
        command = [sys.executable, "-m", "hpcserve", "batch", *words]
        others.append(subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL))
    os.environ.update(shares[0])
    try:
        yield dataclasses.replace(batch, fresh=False)
    finally:
        for other in others:
            if other.poll() is None:
                other.send_signal(signal.SIGTERM)
        for other in others:
            other.wait()


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
