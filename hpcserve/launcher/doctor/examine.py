"""All checks of this node, and of every node of an allocation with an all-reduce between them."""

from __future__ import annotations

import json
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
from hpcserve.launcher.files import write_json

#: Floor for an all-reduce between nodes by fabric, GB/s of bus bandwidth on one GPU per node.
SLOW_GB_S = 1.0
STEP_TIMEOUT_S = 240.0


def node_findings() -> list[Finding]:
    """What concerns one node; quick, without torch."""
    found = [*versions.check(), *gpu.check(), *network.check(), *machine.check()]
    host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    return [Finding(one.level, one.check, one.found, one.fix, host) for one in found]


def node_report(folder: Path) -> None:
    """Write what one node tells the one that asked into `folder`."""
    host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    findings = [one.as_json() for one in node_findings()]
    content = {"host": host, "time": machine.now(), "findings": findings}
    write_json(folder / f"node-{host}.json", content)


def here() -> list[Finding]:
    return [*slurm.check(), *node_findings()]


def allocation(
    environment: JobEnvironment, ifname: str | None, *, allreduce: bool
) -> list[Finding]:
    """Every node of the allocation that we are in, through `srun --overlap`."""
    findings = slurm.check()
    parent = envs.HPCSERVE_STATE_DIR.get()
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix="doctor-") as name:
        folder = Path(name)
        reports, wrong = _step(environment, "node", None, folder)
        findings += [Finding(**one) for report in reports for one in report["findings"]]
        findings += [*wrong, *_without_report(environment, reports)]
        if reports:
            findings.append(machine.clock_finding({one["host"]: one["time"] for one in reports}))
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
    measured, wrong = _step(environment, "allreduce", ifname, folder)
    if wrong:
        done = {one["host"] for one in measured}
        absent = ", ".join(sorted(set(environment.hosts) - done)) or "every node got through"
        found = f"{wrong[0].found}; without a result: {absent}"
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
) -> tuple[list[dict[str, Any]], list[Finding]]:
    """Run `hpcserve doctor --part` once on every node; their reports, and what went wrong.

    Reports go by files: srun passes on what tasks print in pieces of a kilobyte, and those of
    several nodes get mixed.
    """
    words = ["srun", f"--jobid={environment.job_id.partition('_')[0]}", "--overlap", "--mpi=none"]
    words += [f"--nodes={environment.num_nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    words += [sys.executable, "-m", "hpcserve", "doctor", "--part", part, "--folder", str(folder)]
    words += ["--ifname", ifname] if ifname else []
    wrong = []
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=STEP_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        wrong = [Finding(FAIL, part, f"no answer in {STEP_TIMEOUT_S:.0f} s", _FIX)]
    else:
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.strip()] or ["nothing"]
            told = next((one for one in reversed(said) if "Error" in one), said[-1])
            wrong = [Finding(FAIL, part, f"exit {done.returncode}: {told[:300]}", _FIX)]
    return [json.loads(one.read_text()) for one in sorted(folder.glob(f"{part}-*.json"))], wrong
