"""A server as a job of this machine, without SLURM: the same supervisor, node and files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from types import SimpleNamespace

import psutil
import pytest
from click.testing import CliRunner

from hpcserve.cli import _submission
from hpcserve.cli.main import main
from hpcserve.launcher import local_job
from hpcserve.launcher.resolve import find
from hpcserve.launcher.status import status

ENGINE = f"{sys.executable} -m hpcserve.launcher.testing.fake_server"


@pytest.fixture
def submit(tmp_path, monkeypatch):
    monkeypatch.setenv("HPCSERVE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    for name in ("SLURM_JOB_ID", "HPCSERVE_CLUSTER"):
        monkeypatch.delenv(name, raising=False)
    jobs = []

    def submit(*words, fake=""):
        # A process of its own: the job is its child, not this one's.
        done = subprocess.run(
            [
                *(sys.executable, "-m", "hpcserve", "submit", "--launcher", "local", "--json"),
                *("--model", str(tmp_path), "--engine-command", ENGINE, "--host", "127.0.0.1"),
                *("--drain", "30", *words),
            ],
            env={**os.environ, "FAKE_ENGINE": fake},
            capture_output=True,
            text=True,
            check=True,
        )
        jobs.append(json.loads(done.stdout)["job_id"])
        return jobs[-1]

    yield submit
    for job_id in jobs:
        pid = int(job_id.removeprefix("local-"))
        if psutil.pid_exists(pid):
            for process in [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]:
                process.kill()


def run(*words, code=0):
    done = CliRunner().invoke(main, list(words))
    assert done.exit_code == code, done.output
    return done.stdout


def controllers(job_id):
    found = local_job.controller(job_id)
    return [] if found is None else [found]


def until_over(job_id):
    deadline = time.monotonic() + 60
    while not status(find(job_id), thorough=True).state.over:
        assert time.monotonic() < deadline, status(find(job_id))
        time.sleep(0.1)


def test_local_job_serves_and_is_cancelled(submit):
    job_id = submit("-J", "here")
    run("wait", "here", "--timeout", "60")
    endpoint = json.loads(run("endpoint", job_id, "--json"))
    key = find(job_id).job_dir.api_key.read_text().strip()
    request = urllib.request.Request(
        f"{endpoint['url']}/models", headers={"Authorization": f"Bearer {key}"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert json.loads(answer.read())["data"]
    assert "ready at" in run("logs", "here")
    run("cancel", "here")
    until_over(job_id)
    psutil.wait_procs(controllers(job_id), timeout=60)
    assert "over already" in CliRunner().invoke(main, ["cancel", "here"]).output
    assert str(status(find(job_id)).cause).startswith("cancelled")


def test_a_local_job_is_no_part_of_the_allocation_around_it(submit, monkeypatch):
    for name, value in (("JOB_ID", "77"), ("JOB_NODELIST", "n[1-2]"), ("GPUS_ON_NODE", "3")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    job_id = submit()
    monkeypatch.delenv("SLURM_JOB_ID")
    run("wait", job_id, "--timeout", "60")
    assert find(job_id).job_dir.read_job()["job_ids"] == [job_id]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--nodes", "2", "--tp", "16", "--launcher", "auto"], "there is no sbatch on PATH"),
        (["--tp", "16", "--launcher", "auto"], "2 nodes need SLURM"),
        (["--nodes", "2", "--tp", "2", "--launcher", "debug"], "--launcher debug runs on this"),
    ],
)
def test_several_nodes_need_slurm(submit, tmp_path, monkeypatch, words, reason):
    monkeypatch.setattr("hpcserve.launcher.slurm_query.is_here", lambda: False)
    done = CliRunner().invoke(main, ["submit", "--force", "--model", str(tmp_path), *words])
    assert done.exit_code == 2
    assert reason in done.output
    assert not (tmp_path / "state").exists()


def test_who_finds_no_slurm_is_told(submit, tmp_path, monkeypatch):
    launched = SimpleNamespace(submit=lambda script, run_dir, replicas: "local-1")
    monkeypatch.setattr(_submission, "make_launcher", lambda name: (launched, "local"))
    words = ["submit", "--force", "--model", str(tmp_path)]
    told = CliRunner().invoke(main, [*words, "--launcher", "auto"])
    assert told.exit_code == 0, told.output
    assert "no sbatch on PATH: the job runs on this machine" in told.stderr
    asked_for = CliRunner().invoke(main, [*words, "--launcher", "local", "-J", "other"])
    assert asked_for.exit_code == 0, asked_for.output
    assert "sbatch" not in asked_for.stderr


def test_local_crash_is_told(submit):
    job_id = submit(fake="exit=3,fail=ValueError: no such shard")
    done = CliRunner().invoke(main, ["wait", job_id, "--timeout", "60"])
    assert done.exit_code == 1
    assert "ValueError: no such shard" in done.output


def test_local_supervisor_that_is_killed_is_noticed(submit):
    job_id = submit()
    run("wait", job_id, "--timeout", "60")
    controller = psutil.Process(int(job_id.removeprefix("local-")))
    for process in [*controller.children(recursive=True), controller]:
        process.send_signal(signal.SIGKILL)
    until_over(job_id)
    assert status(find(job_id), thorough=True).cause


def test_debug_runs_in_the_foreground_until_ctrl_c(submit, tmp_path):
    words = ["submit", "--launcher", "debug", "--model", str(tmp_path), "--host", "127.0.0.1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "hpcserve", *words, "--engine-command", ENGINE, "-J", "shown"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "ready at" in line:
            break
    assert lines[0].split() == ["job", f"local-{process.pid}", "shown"]
    run("wait", "shown", "--timeout", "60")
    assert status(find("shown"), thorough=True).state.value == "ready"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    rest, _ = process.communicate(timeout=60)
    assert "draining" in rest
    assert process.returncode == 0
    assert str(status(find("shown")).cause).startswith("cancelled")
    assert "ready at" in run("logs", "shown")
