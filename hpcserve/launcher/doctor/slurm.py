"""SLURM itself: does it answer, how does it end jobs, does it keep accounting."""

from __future__ import annotations

import shutil

from hpcserve.errors import SlurmError
from hpcserve.launcher import slurm_query
from hpcserve.launcher.doctor.base import FAIL, PASS, WARN, Finding


def check() -> list[Finding]:
    if shutil.which("sinfo") is None:
        return [Finding(PASS, "SLURM", "not here: jobs run on this machine")]
    try:
        version = slurm_query.command("sinfo", "--version").strip()
        slurm_query.command("squeue", "-h", "-j", "0")
    except SlurmError as error:
        if "Invalid job id" not in str(error):
            return [Finding(FAIL, "SLURM", str(error), "ask the administrators")]
    findings = [Finding(PASS, "SLURM", version)]
    track = slurm_query.word("ProctrackType")
    if track and "cgroup" not in track:
        fix = "processes may outlive their job: ProctrackType=proctrack/cgroup"
        findings.append(Finding(WARN, "process tracking", track, fix))
    wait = slurm_query.setting("KillWait", 30.0)
    fix = "a drain has no longer after SIGTERM; --signal warns earlier" if wait < 10 else ""
    findings.append(Finding(WARN if wait < 10 else PASS, "KillWait", f"{wait:.0f} s", fix))
    if slurm_query.word("JobRequeue") == "0":
        fix = "--continue-with requeue will submit a new job instead"
        findings.append(Finding(WARN, "requeue", "JobRequeue=0", fix))
    return findings
