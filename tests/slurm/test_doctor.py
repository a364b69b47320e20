"""`hpcserve doctor` in an allocation of two nodes: reports from both, and an all-reduce."""

from __future__ import annotations

import json
import subprocess
import sys


def test_every_node_reports_and_the_all_reduce_gets_through(site):
    words = [sys.executable, "-m", "hpcserve", "doctor", "--json", "--ifname", "lo"]
    done = subprocess.run(
        ["salloc", "-N", "2", *words],
        env=site.env(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout, f"exit {done.returncode}: {done.stderr}"
    said = json.loads(done.stdout)
    reports = [one["host"] for one in said["findings"] if one["check"] == "versions"]
    assert sorted(reports) == ["n1", "n2"], done.stdout
    (sums,) = [one for one in said["findings"] if one["check"] == "all-reduce"]
    assert sums["level"] == "PASS", sums
    assert "2 nodes" in sums["found"]
    assert [one["level"] for one in said["findings"] if one["check"] == "clocks"] == ["PASS"]
