"""Disk, shared memory, limits, the clock."""

from __future__ import annotations

import resource
import shutil
import time
from pathlib import Path

import psutil

from hpcserve import envs
from hpcserve.launcher.doctor.base import FAIL, PASS, WARN, Finding

GIB = 1 << 30
#: Between nodes: heartbeats and end times are compared.
MAX_SKEW_S = 5.0


def check() -> list[Finding]:
    return [
        _space("state folder", envs.HPCSERVE_STATE_DIR.get(), 1, "HPCSERVE_STATE_DIR"),
        _space("cache folder", envs.HPCSERVE_CACHE_DIR.get(), 10, "HPCSERVE_CACHE_DIR"),
        _space("temporary folder", Path("/tmp"), 2, "TMPDIR"),
        _shared_memory(),
        _memory(),
        _locked_memory(),
    ]


def _space(what: str, path: Path, gib: int, variable: str) -> Finding:
    existing = next((one for one in (path, *path.parents) if one.exists()), Path("/"))
    free = shutil.disk_usage(existing).free
    found = f"{path}: {free / GIB:.1f} GiB free"
    if free < gib * GIB:
        fix = f"set {variable} to a folder with at least {gib} GiB"
        return Finding(FAIL if free < GIB // 8 else WARN, what, found, fix)
    return Finding(PASS, what, found)


def _shared_memory() -> Finding:
    path = Path("/dev/shm")
    if not path.is_dir():
        return Finding(
            FAIL, "shared memory", "there is no /dev/shm", "start containers with --ipc=host"
        )
    free = shutil.disk_usage(path).free
    if free < GIB:
        fix = "containers: --ipc=host or --shm-size=16g; NCCL needs it between the GPUs of a node"
        return Finding(WARN, "shared memory", f"{free / GIB:.2f} GiB free in /dev/shm", fix)
    return Finding(PASS, "shared memory", f"{free / GIB:.1f} GiB free in /dev/shm")


def _memory() -> Finding:
    free = psutil.virtual_memory().available
    found = f"{free / GIB:.0f} GiB of host memory free"
    if free < 4 * GIB:
        return Finding(WARN, "memory", found, "ask for more with --mem, or --mem=0 for all of it")
    return Finding(PASS, "memory", found)


def _locked_memory() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return Finding(PASS, "locked memory", "no limit")
    fix = "RDMA needs it unlimited: PropagateResourceLimitsExcept=MEMLOCK in slurm.conf"
    return Finding(WARN, "locked memory", f"at most {soft // 1024} KiB", fix)


def clock_finding(times: dict[str, float], begun: float, ended: float) -> Finding:
    """Host -> its time, read at some moment between `begun` and `ended` by the clock here.

    Nodes come up at different moments, which says nothing of their clocks.
    """
    skews = {
        host: at - begun if at < begun else at - ended if at > ended else 0.0
        for host, at in times.items()
    }
    worst = max(skews, key=lambda host: abs(skews[host]))
    skew = skews[worst]
    if abs(skew) > MAX_SKEW_S:
        how = "ahead of" if skew > 0 else "behind"
        found = f"{worst} is at least {abs(skew):.1f} s {how} this machine"
        return Finding(WARN, "clocks", found, "start chrony or ntpd on every node")
    return Finding(PASS, "clocks", f"at most {ended - begun + abs(skew):.1f} s apart")


def now() -> float:
    return time.time()
