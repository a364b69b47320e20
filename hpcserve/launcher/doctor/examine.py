"""All checks of this node, and of every node of an allocation with an all-reduce between them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpcserve import envs
from hpcserve.launcher.base import JobEnvironment
from hpcserve.launcher.doctor import gpu, machine, network, slurm, versions
from hpcserve.launcher.doctor.base import FAIL, PASS, Finding
from hpcserve.launcher.files import read_json, write_json

#: Floor for an all-reduce between nodes by fabric, GB/s of bus bandwidth on one GPU per node.
SLOW_GB_S = 1.0
STEP_TIMEOUT_S = 240.0


def node_findings(ifname: str | None = None) -> list[Finding]:
    """What concerns one node; quick, without torch."""
    found = [*versions.check(), *gpu.check(), *network.check(ifname), *machine.check()]
    host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    return [Finding(one.level, one.check, one.found, one.fix, host) for one in found]


def node_report(folder: Path, ifname: str | None) -> None:
    """Write what one node tells the one that asked into `folder`."""
    host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    findings = [one.as_json() for one in node_findings(ifname)]
    content = {"host": host, "time": machine.now(), "findings": findings}
    write_json(folder / f"node-{host}.json", content)


def here(ifname: str | None) -> list[Finding]:
    return [*slurm.check(), *node_findings(ifname)]


def allocation(
    environment: JobEnvironment, ifname: str | None, *, allreduce: bool
) -> list[Finding]:
    """Every node of the allocation that we are in, through `srun --overlap`."""
    findings = slurm.check()
    parent = envs.HPCSERVE_STATE_DIR.get()
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix="doctor-") as name:
        folder = Path(name)
        begun = machine.now()
        wrong = _step(environment, "node", ifname, folder)
        ended = machine.now()
        names = [f"node-{host}.json" for host in environment.hosts]
        reports = [report for name in names if (report := read_json(folder / name))]
        findings += [Finding(**one) for report in reports for one in report["findings"]]
        findings += [*wrong, *_without_report(environment, reports)]
        if reports:
            times = {one["host"]: one["time"] for one in reports}
            findings.append(machine.clock_finding(times, begun, ended))
        if allreduce and environment.num_nodes > 1:
            findings += _all_reduce(environment, ifname, folder)
    return findings


def _without_report(
    environment: JobEnvironment, reports: Sequence[Mapping[str, Any]]
) -> list[Finding]:
    missing = set(environment.hosts) - {report["host"] for report in reports}
    fix = "look at it with `hpcserve exec`"
    return [Finding(FAIL, "node", "it gave no report", fix, host) for host in sorted(missing)]


def _all_reduce(environment: JobEnvironment, ifname: str | None, folder: Path) -> list[Finding]:
    wrong = _step(environment, "allreduce", ifname, folder)
    files = [folder / f"allreduce-{rank}.json" for rank in range(environment.num_nodes)]
    measured = [one for file in files if (one := read_json(file))]
    absent = ", ".join(sorted(set(environment.hosts) - {one["host"] for one in measured}))
    if wrong or absent:
        what = f"{wrong[0].found}; " if wrong else ""
        found = f"{what}without a result: {absent or 'none, every node got through'}"
        return [Finding(FAIL, "all-reduce", found, _FIX)]
    incorrect = [one["host"] for one in measured if not one["correct"]]
    if incorrect:
        hosts = ", ".join(incorrect)
        return [Finding(FAIL, "all-reduce", f"wrong sums on {hosts}", "drain the node")]
    slowest = min(measured, key=lambda one: float(one["bus_gb_s"]))
    found = f"{len(measured)} nodes, {slowest['bus_gb_s']} GB/s on {slowest['device']}"
    if slowest["device"] == "cuda" and slowest["bus_gb_s"] < SLOW_GB_S:
        return [Finding("WARN", "all-reduce", found, "this is TCP: see the fabric's findings")]
    return [Finding(PASS, "all-reduce", found)]


_FIX = "name the interface with --ifname; NCCL_DEBUG=INFO tells which link was tried"


def _step(
    environment: JobEnvironment, part: str, ifname: str | None, folder: Path
) -> list[Finding]:
    """Run `hpcserve doctor --part` once on every node; returns what went wrong.

    Reports go by files: srun passes on what tasks print in pieces of a kilobyte, and those of
    several nodes get mixed. Their names are known: over NFS a listing may be older than they are.
    """
    # In an array the number before the `_` is that of another task's job.
    words = ["srun", f"--jobid={os.environ['SLURM_JOB_ID']}", "--overlap", "--mpi=none"]
    words += [f"--nodes={environment.num_nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    words += [sys.executable, "-m", "hpcserve", "doctor", "--part", part, "--folder", str(folder)]
    words += ["--ifname", ifname] if ifname else []
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=STEP_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return [Finding(FAIL, part, f"no answer in {STEP_TIMEOUT_S:.0f} s", _FIX)]
    except OSError as error:
        return [Finding(FAIL, part, f"cannot run srun: {error.strerror}", _FIX)]
    if not done.returncode:
        return []
    said = [line for line in done.stderr.splitlines() if line.strip()] or ["nothing"]
    told = next((one for one in reversed(said) if "Error" in one), said[-1])
    return [Finding(FAIL, part, f"exit {done.returncode}: {told[:300]}", _FIX)]
