"""Where a result comes from: machine, versions, commit, command line."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from hpcserve._version import __version__

_PACKAGES = (
    "torch",
    "triton",
    "flashinfer-python",
    "transformers",
    "numpy",
    "uvloop",
    "vllm",
    "sglang",
)
_QUERY_TIMEOUT_S = 20.0


def environment() -> dict[str, Any]:
    """Facts that a later reader needs to judge or repeat a result."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["hpcserve", *sys.argv[1:]]),
        "hpcserve": __version__,
        "commit": commit(Path(__file__).resolve().parent),
        "python": platform.python_version(),
        "packages": _versions(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu_name(),
        "num_cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": gpus(),
    }


def commit(folder: Path) -> str | None:
    """The commit of the checkout that holds `folder`, "+" where files differ from it; None
    outside of one."""
    head = _output(["git", "-C", str(folder), "rev-parse", "HEAD"])
    if head is None:
        return None
    changed = _output(["git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no"])
    return head + ("+" if changed else "")


def gpus() -> list[dict[str, str]]:
    """Name, memory, driver and clock of each GPU; [] where there is none."""
    fields = ("name", "memory.total", "driver_version", "clocks.sm", "temperature.gpu")
    listed = _output(["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"])
    if listed is None:
        return []
    rows = [line.split(", ") for line in listed.splitlines()]
    return [dict(zip(fields, row, strict=False)) for row in rows]


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _output(command: list[str]) -> str | None:
    """What a command prints; None where it does not exist or fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_QUERY_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
