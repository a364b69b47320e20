"""All checks of this node, and of every node of an allocation with an all-reduce between them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hpcserve import envs
from hpcserve.launcher.base import JobEnvironment
from hpcserve.launcher.doctor import gpu, machine, network, slurm, versions
from hpcserve.launcher.doctor.base import FAIL, PASS, Finding

#: Floor for an all-reduce between nodes by fabric, GB/s of bus bandwidth on one GPU per node.
SLOW_GB_S = 1.0
STEP_TIMEOUT_S = 240.0


def node_findings() -> list[Finding]:
    """What concerns one node; quick, without torch."""
    found = [*versions.check(), *gpu.check(), *network.check(), *machine.check()]
    host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    return [Finding(one.level, one.check, one.found, one.fix, host) for one in found]


def node_report() -> dict[str, Any]:
    """What one node tells the others, as JSON."""
    host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    return {
        "host": host,
        "time": machine.now(),
        "findings": [one.as_json() for one in node_findings()],
    }


def here() -> list[Finding]:
    return [*slurm.check(), *node_findings()]


def allocation(
    environment: JobEnvironment, ifname: str | None, *, allreduce: bool
) -> list[Finding]:
    """Every node of the allocation that we are in, through `srun --overlap`."""
    reports = _step(environment, "node", None)
    if isinstance(reports, Finding):
        return [*slurm.check(), reports]
    findings = [Finding(**one) for report in reports for one in report["findings"]]
    missing = set(environment.hosts) - {report["host"] for report in reports}
    findings += [
        Finding(FAIL, "node", "it gave no report", "look at it with `hpcserve exec`", host)
        for host in sorted(missing)
    ]
    findings.append(machine.clock_finding({report["host"]: report["time"] for report in reports}))
    if allreduce and environment.num_nodes > 1:
        findings += _all_reduce(environment, ifname)
    return [*slurm.check(), *findings]


def _all_reduce(environment: JobEnvironment, ifname: str | None) -> list[Finding]:
    parent = envs.HPCSERVE_STATE_DIR.get()
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix="doctor-") as folder:
        measured = _step(environment, "allreduce", ifname, folder)
        done = {
            json.loads(one.read_text())["host"] for one in Path(folder).glob("allreduce-*.json")
        }
    if isinstance(measured, Finding):
        absent = ", ".join(sorted(set(environment.hosts) - done)) or "every node got through"
        return [Finding(FAIL, "all-reduce", f"{measured.found}; without a result: {absent}", _FIX)]
    wrong = [one["host"] for one in measured if not one["correct"]]
    if wrong:
        return [Finding(FAIL, "all-reduce", f"wrong sums on {', '.join(wrong)}", "drain the node")]
    slowest = min(measured, key=lambda one: float(one["bus_gb_s"]))
    found = f"{len(measured)} nodes, {slowest['bus_gb_s']} GB/s on {slowest['device']}"
    if slowest["device"] == "cuda" and slowest["bus_gb_s"] < SLOW_GB_S:
        return [Finding("WARN", "all-reduce", found, "this is TCP: see the fabric's findings")]
    return [Finding(PASS, "all-reduce", found)]


_FIX = "name the interface with --ifname; NCCL_DEBUG=INFO tells which link was tried"


def _step(
    environment: JobEnvironment, part: str, ifname: str | None, folder: str = ""
) -> list[dict[str, Any]] | Finding:
    """Run `hpcserve doctor --part` once on every node; their JSON lines, or what went wrong."""
    words = ["srun", f"--jobid={environment.job_id.partition('_')[0]}", "--overlap", "--mpi=none"]
    words += [f"--nodes={environment.num_nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    words += [sys.executable, "-m", "hpcserve", "doctor", "--part", part]
    words += ["--folder", folder] if folder else []
    words += ["--ifname", ifname] if ifname else []
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=STEP_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding(FAIL, part, f"no answer in {STEP_TIMEOUT_S:.0f} s", _FIX)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["nothing"]
        told = next((one for one in reversed(said) if "Error" in one), said[-1])
        return Finding(FAIL, part, f"exit {done.returncode}: {told[:300]}", _FIX)
    return [json.loads(line) for line in lines]
