"""Why a job died, in one word and one line, from what SLURM says and what the logs end with."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

OUT_OF_MEMORY = "out of memory"
TIME_LIMIT = "time limit"
NODE_FAILURE = "node failure"
NCCL_TIMEOUT = "NCCL timeout"
PREEMPTED = "preempted"
CANCELLED = "cancelled"
CRASHED = "crashed"
#: No death: SLURM has put the job back into the queue, as `scontrol requeue` asks it to.
REQUEUED = "requeued"

#: What SLURM's state of an ended job means.
SLURM_STATES = {
    "OUT_OF_MEMORY": OUT_OF_MEMORY,
    "TIMEOUT": TIME_LIMIT,
    "DEADLINE": TIME_LIMIT,
    "NODE_FAIL": NODE_FAILURE,
    "BOOT_FAIL": NODE_FAILURE,
    "PREEMPTED": PREEMPTED,
    "CANCELLED": CANCELLED,
}

# Order counts: the first kind that a line speaks of is taken.
_PATTERNS = (
    (TIME_LIMIT, r"DUE TO TIME LIMIT"),
    (PREEMPTED, r"DUE TO PREEMPTION"),
    (NODE_FAILURE, r"DUE TO NODE FAILURE|Node failure on|unexpectedly failed|node \S+ is lost"),
    (
        OUT_OF_MEMORY,
        r"CUDA out of memory|OutOfMemoryError|CUDA_ERROR_OUT_OF_MEMORY|oom.kill|"
        r"[Oo]ut [Oo]f [Mm]emory|Cannot allocate memory|MemoryError|std::bad_alloc",
    ),
    (
        NCCL_TIMEOUT,
        r"Watchdog caught collective operation timeout|collective operation timeout|"
        r"NCCL.{0,80}(timed? ?out|ncclRemoteError|remote process exited)|"
        r"DistStoreError|connectFullMesh failed|"
        r"gloo.{0,120}(Timed out|Connection (reset|closed))",
    ),
)
_CANCELLED = re.compile(r"STEP \S+ ON \S+ CANCELLED AT|JOB \d+ ON \S+ CANCELLED AT")
_ERROR = re.compile(
    r"^(\w+\.)*\w*(Error|Exception|Exit|Interrupt)\b|\berror:|\bERROR\b|\bFATAL\b|\bfatal\b"
)
#: Slurm's own words about ending steps say nothing of the cause.
_NOISE = re.compile(
    r"^(srun|slurmstepd\S*): .*(STEP|launch/slurm|Terminating|forcing job|Job step aborted|"
    r"Exited with exit code|Killed|Terminated|Force Terminated)"
)


@dataclass(frozen=True)
class Cause:
    """kind: one of this module's words.  detail: the line that says it, or how it is known."""

    kind: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}" if self.detail else self.kind


def from_slurm(state: str, reason: str = "") -> Cause | None:
    """From the state in which SLURM keeps the job; None where that says nothing (FAILED)."""
    kind = SLURM_STATES.get(state.split()[0] if state else "")
    return Cause(kind, reason or f"SLURM says {state}") if kind else None


def from_logs(lines: Iterable[str], exit_code: int | None = None) -> Cause:
    """From the ends of the logs; with no better clue the last line that looks like an error."""
    kept = [line.strip() for line in lines if line.strip()]
    for kind, pattern in _PATTERNS:
        for line in reversed(kept):
            if re.search(pattern, line):
                return Cause(kind, line[:500])
    useful = [line for line in kept if not _NOISE.search(line) and not _CANCELLED.search(line)]
    errors = [line for line in useful if _ERROR.search(line)]
    if errors:
        return Cause(CRASHED, errors[-1].removeprefix("error: ")[:500])
    ended = _how_it_ended(exit_code)
    last = f"; last line: {useful[-1][:400]}" if useful else "; the log is empty"
    return Cause(CRASHED, ended + last)


def _how_it_ended(exit_code: int | None) -> str:
    if exit_code is None:
        return "it vanished without a word"
    if exit_code in (137, -9):
        return "killed by SIGKILL (often the kernel, for want of host memory)"
    if exit_code > 128 or exit_code < 0:
        return f"ended by signal {exit_code - 128 if exit_code > 0 else -exit_code}"
    return f"exit code {exit_code}"


def tail(path: Path, start: int = 0, max_bytes: int = 64 * 1024) -> list[str]:
    """The last lines of a log, from byte `start` on; none where it cannot be read."""
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(start, size - max_bytes, 0))
            return stream.read().decode("utf-8", errors="replace").splitlines()[-200:]
    except OSError:
        return []
