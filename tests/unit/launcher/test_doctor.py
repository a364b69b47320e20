from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from hpcserve.cli.main import main
from hpcserve.launcher.doctor import gpu, machine
from hpcserve.launcher.doctor.base import FAIL, PASS, WARN, Finding, worst


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    def says(query="", nvlink="", code=0):
        script = tmp_path / "nvidia-smi"
        script.write_text(
            f"#!/bin/bash\n[[ $1 == nvlink ]] && {{ echo '{nvlink}'; exit; }}\n"
            f"echo '{query}'\nexit {code}\n"
        )
        script.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("SLURM_GPUS_ON_NODE", raising=False)
    return says


GOOD = "NVIDIA H200, 570.1, 143771, 4, 0"


def test_no_gpu_is_fine_where_none_was_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("SLURM_GPUS_ON_NODE", raising=False)
    assert worst(gpu.check()) == PASS
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "8")
    assert worst(gpu.check()) == FAIL


@pytest.mark.parametrize(
    ("query", "level", "word"),
    [
        (GOOD, PASS, "H200"),
        ("NVIDIA H200, 570.1, 143771, 90000, 0", WARN, "in use"),
        ("NVIDIA H200, 570.1, 143771, 4, 2", FAIL, "ECC"),
    ],
)
def test_gpus_are_looked_at(nvidia_smi, query, level, word):
    nvidia_smi(query)
    findings = gpu.check()
    assert worst(findings) == level
    assert any(word in one.found for one in findings)
    assert all(one.fix for one in findings if one.level != PASS)


def test_a_gpu_fewer_than_slurm_gave_fails(nvidia_smi, monkeypatch):
    nvidia_smi(GOOD)
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "2")
    assert worst(gpu.check()) == FAIL


def test_a_link_that_is_down_fails(nvidia_smi):
    nvidia_smi(f"{GOOD}\n{GOOD}", nvlink="Link 0: 26.5 GB/s\n Link 1: <inactive>")
    assert worst(gpu.check()) == FAIL


def test_clocks():
    assert machine.clock_finding({"a": 100.0, "b": 100.2}).level == PASS
    late = machine.clock_finding({"a": 100.0, "b": 130.0})
    assert (late.level, "b is ahead" in late.found) == (WARN, True)


def test_worst_of_many():
    assert worst([]) == PASS
    assert worst([Finding(WARN, "x", "y"), Finding(FAIL, "x", "y")]) == FAIL


def test_doctor_prints_json():
    done = CliRunner().invoke(main, ["doctor", "--json"])
    said = json.loads(done.output)
    checks = {one["check"] for one in said["findings"]}
    assert {"versions", "GPUs", "address", "shared memory", "cache folder"} <= checks
