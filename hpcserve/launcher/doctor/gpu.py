"""GPUs: what the driver shows, NVLink between them, errors that it has counted."""

from __future__ import annotations

import shutil
import subprocess

from hpcserve.launcher.doctor.base import FAIL, PASS, WARN, Finding
from hpcserve.launcher.environment import gpus_on_node

_FIELDS = "name,driver_version,memory.total,memory.used,ecc.errors.uncorrected.volatile.total"
#: A driver without persistence mode takes its time for the first question.
TIMEOUT_S = 30.0


def check() -> list[Finding]:
    expected = gpus_on_node()
    if shutil.which("nvidia-smi") is None:
        if expected:
            fix = "load the driver's module, or start the container with GPUs (--nv, --gpus)"
            return [Finding(FAIL, "GPUs", f"SLURM gave {expected}, nvidia-smi is missing", fix)]
        return [Finding(PASS, "GPUs", "none: the engine will use the CPU")]
    rows = _query(_FIELDS)
    if isinstance(rows, str):
        return [Finding(FAIL, "GPUs", rows, "the driver does not answer: drain the node")]
    findings = [_count(rows, expected)]
    findings += [finding for index, row in enumerate(rows) for finding in _one(index, row)]
    return [*findings, *_links(len(rows))]


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


def _query(fields: str) -> list[list[str]] | str:
    """One row per GPU; a text where nvidia-smi fails."""
    words = ("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits")
    try:
        done = _run(*words)
    except subprocess.TimeoutExpired:
        return f"nvidia-smi gave no answer in {TIMEOUT_S:.0f} s"
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        return f"nvidia-smi failed (exit {done.returncode}): {said[-1] if said else 'no word'}"
    return [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]


def _count(rows: list[list[str]], expected: int | None) -> Finding:
    names = ", ".join(sorted({row[0] for row in rows}))
    found = f"{len(rows)} x {names}, driver {rows[0][1]}" if rows else "none"
    if expected is not None and len(rows) < expected:
        return Finding(FAIL, "GPUs", f"{found}; SLURM gave {expected}", "drain the node")
    return Finding(PASS, "GPUs", found)


def _one(index: int, row: list[str]) -> list[Finding]:
    findings = []
    total, used, errors = (float(cell) if _is_number(cell) else 0.0 for cell in row[2:5])
    if used > 0.05 * total:
        findings.append(
            Finding(
                WARN,
                f"GPU {index}",
                f"{used:.0f} of {total:.0f} MiB are in use before we start",
                "somebody's process (or container) is left on it: look with nvidia-smi",
            )
        )
    if errors:
        fix = "reset the GPU or drain the node"
        findings.append(Finding(FAIL, f"GPU {index}", f"{errors:.0f} uncorrected ECC errors", fix))
    return findings


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


def _links(count: int) -> list[Finding]:
    if count < 2:
        return []
    try:
        done = _run("nvidia-smi", "nvlink", "--status")
    except subprocess.TimeoutExpired:
        found = f"nvidia-smi nvlink gave no answer in {TIMEOUT_S:.0f} s"
        return [Finding(WARN, "NVLink", found, "look at it on the node; drain it if it stays so")]
    active = done.stdout.count("GB/s")
    if done.returncode or not active:
        return [Finding(WARN, "NVLink", "none seen", "tensor parallelism will go over PCIe")]
    inactive = done.stdout.count("inactive")
    if inactive:
        return [
            Finding(FAIL, "NVLink", f"{inactive} links are down, {active} up", "drain the node")
        ]
    return [Finding(PASS, "NVLink", f"{active} links up")]
