"""`--jobs N` on one machine: N processes of the same command, which share the run's rows."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from hpcserve.batch.durable import storage
from hpcserve.batch.files import STANDARD
from hpcserve.batch.idle import ARRAY_TIMEOUT_S
from hpcserve.batch.run_dir import RunDir
from hpcserve.config.batch import BatchConfig
from hpcserve.engine.lifeline import end_with_parent_thread
from hpcserve.errors import ConfigError
from hpcserve.log import get_logger

log = get_logger(__name__)


@contextmanager
def other_workers(
    argv: Sequence[str], batch: BatchConfig, begin: Callable[[], bool]
) -> Iterator[BatchConfig]:
    """Within the block, all but one of the workers run beside this process. They end when the
    run's rows are finished, or are told to when the block ends before.

    begin: what is done once for all of them, starting over where that is asked; returns whether
    anything is left to do. Gives what is left for this process.
    """
    if STANDARD in (*batch.inputs, batch.output):
        raise ConfigError("--jobs: workers cannot share stdin or stdout; name files")
    num_jobs = batch.jobs
    shares = [device_share(os.environ, number, num_jobs) for number in range(num_jobs)]
    # This one waits for the others, so it may not leave before them.
    mine = dataclasses.replace(batch, fresh=False, idle_timeout_s=0.0)
    if not begin():
        yield mine
        return
    words = [word for word in without_option(argv, "--jobs") if word not in _ONCE]
    if batch.idle_timeout_s is None:
        words = ["--idle-timeout", f"{ARRAY_TIMEOUT_S:g}", *words]
    folder = RunDir.of_output(Path(batch.output)).workers
    logs = {number: folder / f"job-{number}.log" for number in range(1, num_jobs)}
    others = {number: _start(words, shares[number], log_file) for number, log_file in logs.items()}
    os.environ.update(shares[0])
    try:
        yield mine
    finally:
        for other in others.values():
            if other.poll() is None:
                other.send_signal(signal.SIGTERM)
        for number, other in others.items():
            code = other.wait()
            if code not in _ORDERLY:
                log.warning("worker %d ended with exit code %d; see %s", number, code, logs[number])


def _start(
    words: Sequence[str], share: Mapping[str, str], log_file: Path
) -> subprocess.Popen[bytes]:
    """What it says goes to a file: there is one terminal, and one who writes to it."""
    command = [sys.executable, "-m", "hpcserve", "batch", *words]
    with storage(log_file), log_file.open("ab") as stream:
        return subprocess.Popen(
            command,
            env={**os.environ, **share},
            stdin=subprocess.DEVNULL,
            stderr=stream,
            preexec_fn=end_with_parent_thread,
        )


#: Exit codes: all answered, some rows failed, stopped and to be resumed, told to stop.
_ORDERLY = (0, 3, 75, 130, -signal.SIGTERM)
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
