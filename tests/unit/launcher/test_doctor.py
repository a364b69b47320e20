from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from hpcserve.cli.main import main
from hpcserve.launcher import environment
from hpcserve.launcher.base import JobEnvironment
from hpcserve.launcher.doctor import examine, gpu, machine
from hpcserve.launcher.doctor.base import FAIL, PASS, WARN, Finding, worst
from hpcserve.launcher.files import write_json


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


@pytest.mark.parametrize(
    ("times", "level", "word"),
    [
        # Nodes came up at any moment of the step: that is no difference of clocks.
        ({"a": 100.0, "b": 119.0}, PASS, "at most 20.0 s"),
        ({"a": 100.0, "b": 150.0}, WARN, "b is at least 30.0 s ahead"),
        ({"a": 70.0, "b": 110.0}, WARN, "a is at least 30.0 s behind"),
        ({"a": 97.0, "b": 110.0}, PASS, "at most 23.0 s"),
    ],
)
def test_clocks(times, level, word):
    found = machine.clock_finding(times, 100.0, 120.0)
    assert (found.level, word in found.found) == (level, True), found


@pytest.fixture
def allocation(fake_slurm, monkeypatch):
    """Of two nodes, as task 3 of array 12, which is a job of number 15."""
    monkeypatch.setenv("SLURM_JOB_ID", "15")
    here = JobEnvironment("12_3", 0, 2, ("n1", "n2"), "n1", array_task_id="3")
    return lambda: examine.allocation(here, None, allreduce=True)


def test_nodes_without_a_result_are_named(allocation, fake_slurm):
    found = [one for one in allocation() if one.level == FAIL]
    assert [(one.check, one.host) for one in found[:2]] == [("node", "n1"), ("node", "n2")]
    assert (found[2].check, "without a result: n1, n2" in found[2].found) == ("all-reduce", True)
    for words in fake_slurm.calls("srun"):
        assert "--jobid=15" in words  # 12 is another task's


def test_reports_are_read_by_name(allocation, monkeypatch):
    """Over NFS a listing of the folder may be older than the files in it."""
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))

    plain = subprocess.run

    def step(words, **options):
        if words[0] != "srun":
            return plain(words, **options)
        folder = Path(words[words.index("--folder") + 1])
        for rank, host in enumerate(("n1", "n2")):
            report = {"host": host, "time": machine.now(), "findings": []}
            write_json(folder / f"node-{host}.json", report)
            sums = {"host": host, "correct": True, "bus_gb_s": 3, "device": "cpu"}
            write_json(folder / f"allreduce-{rank}.json", sums)
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(examine.subprocess, "run", step)
    said = {one.check: one.level for one in allocation()}
    assert (said["clocks"], said["all-reduce"], said.get("node")) == (PASS, PASS, None)


@pytest.mark.parametrize("step_id", ["", "4294967291", "4294967290"])
def test_the_shell_of_salloc_sees_all_nodes(monkeypatch, step_id):
    """SLURM may open it as a step of its own on the first node."""
    for name, value in (
        ("SLURM_JOB_ID", "7"),
        ("SLURM_STEP_ID", step_id),
        ("SLURM_STEP_NODELIST", "n1"),
        ("SLURM_JOB_NODELIST", "n[1-2]"),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    assert environment.current().hosts == ("n1", "n2")


@pytest.mark.parametrize("hangs", ["nvlink", "--query"])
def test_a_driver_that_hangs_is_a_finding(nvidia_smi, tmp_path, monkeypatch, hangs):
    nvidia_smi(f"{GOOD}\n{GOOD}", nvlink="Link 0: 26.5 GB/s")
    script = tmp_path / "nvidia-smi"
    first, rest = script.read_text().split("\n", 1)
    script.write_text(f"{first}\n[[ $1 == {hangs}* ]] && exec sleep 60\n{rest}")
    monkeypatch.setattr(gpu, "TIMEOUT_S", 0.5)
    (found,) = [one for one in gpu.check() if "no answer" in one.found]
    assert found.fix


def test_a_driver_that_fails_without_a_word_is_a_finding(nvidia_smi):
    nvidia_smi("", code=9)
    (found,) = gpu.check()
    assert (found.level, "exit 9" in found.found) == (FAIL, True)


def test_a_named_interface_is_looked_at_and_no_other():
    (found,) = [one for one in examine.here("no-such-0") if one.check == "address"]
    assert (found.level, "no-such-0" in found.found) == (FAIL, True)
    (found,) = [one for one in examine.here("lo") if one.check == "address"]
    assert (found.level, "on lo" in found.found) == (PASS, True)


def test_worst_of_many():
    assert worst([]) == PASS
    assert worst([Finding(WARN, "x", "y"), Finding(FAIL, "x", "y")]) == FAIL


def test_doctor_prints_json():
    done = CliRunner().invoke(main, ["doctor", "--json"])
    said = json.loads(done.output)
    checks = {one["check"] for one in said["findings"]}
    assert {"versions", "GPUs", "address", "shared memory", "cache folder"} <= checks
