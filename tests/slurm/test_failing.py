"""When something breaks, the message names the cause, in seconds, and nothing is left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time

import psutil
import pytest


def test_out_of_memory_on_one_rank_fails_the_wait_at_once(site, nothing_left):
    fail = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
    job = site.submit("--nodes", "2", "--tp", "2", fake=f"load=200,rank=1,exit=1,fail={fail}")
    failed = job.hpc("wait", "--timeout", "100", check=False)
    assert failed.returncode == 1  # 124 would be the time-out
    assert "out of memory" in failed.stderr
    assert "Tried to allocate" in failed.stderr
    assert job.status()["slurm_state"] == "FAILED"


def test_nccl_timeout_is_called_by_its_name(site):
    fail = "[rank1]: Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7)"
    job = site.submit("--nodes", "2", "--tp", "2", fake=f"load=200,rank=1,exit=1,fail={fail}")
    assert job.until("dead")["cause"].startswith("NCCL timeout")


def test_without_accounting_the_end_is_known(site):
    asked = ["sacct", "-j", "1"]
    done = subprocess.run(asked, env=site.env(), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "accounting storage is disabled" in done.stderr
    job = site.submit(fake="exit=4,fail=ValueError: no accounting", model="/tmp")
    assert job.until("dead")["cause"] == "crashed: ValueError: no accounting"
    assert job.status()["slurm_state"] == "FAILED"


def test_crash_gives_the_last_error_line(site):
    job = site.submit(fake="exit=4,fail=ValueError: shard 3 of 4 is corrupt")
    assert job.until("dead")["cause"] == "crashed: ValueError: shard 3 of 4 is corrupt"
    assert job.hpc("endpoint", check=False).returncode == 1
    assert job.hpc("status", check=False).returncode == 1


def test_killed_engine_of_one_rank_ends_all_ranks(site, nothing_left):
    job = site.submit("--nodes", "2", "--tp", "2")
    job.wait()
    job.until_beat(1, "engine_pid")
    engine = job.read("nodes/rank-1.json")["engine_pid"]
    os.kill(engine, signal.SIGKILL)
    said = job.until("dead")
    assert said["cause"].startswith("crashed: killed by SIGKILL") or "137" in said["cause"]


def test_killed_supervisor_is_noticed(site, nothing_left):
    job = site.submit("--nodes", "2", "--tp", "2")
    job.wait()
    for process in job.processes("hpcserve job"):
        process.kill()
    said = job.until("dead")
    assert said["cause"]
    assert job.hpc("wait", check=False).returncode == 1


def kill_node(site, job, rank, name):
    """slurmd, slurmstepd and what they started, as when a node loses power."""
    tasks = job.processes("", rank)
    keepers = {p.parent() for p in tasks if p.parent().cmdline()[0].startswith("slurmstepd")}
    for process in [*keepers, psutil.Process(site.slurm.processes[name].pid), *tasks]:
        process.kill()
    site.slurm.processes.pop(name).wait()


def test_lost_node_is_named_and_left_out_of_the_next_run(site, nothing_left):
    options = ("--continue-with", "requeue", "--rank-timeout", "8")
    job = site.submit("--nodes", "2", "--tp", "2", "--nodelist", "n1", *options)
    job.wait()
    lost = job.status()["nodes"][1]
    kill_node(site, job, 1, lost)
    try:
        said = job.until("pending", "dead")
        assert said["cause"].startswith("node failure"), said
        assert lost in said["cause"]
        show = ("scontrol", "show", "job", job.job_id)
        job.eventually(lambda: f"ExcNodeList={lost}" in site.slurm.run(*show), "it is left out")
    finally:
        site.slurm.start_node(lost)
        site.slurm.run("scancel", job.job_id, check=False)
        site.slurm.run("scontrol", "update", f"NodeName={lost}", "State=RESUME", check=False)
        site.slurm.wait_until_idle()


@pytest.fixture
def small_disk(site):
    """A file system of 256 KiB, and a function that fills it."""
    folder = site.home / "small"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=256k,mode=755", "tmpfs", folder]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a file system")

    def fill():
        with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as filler:
            while filler.write(b"x" * 4096):
                pass
        return folder / "filler"

    yield folder, fill
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_does_not_end_a_server(site, small_disk):
    folder, fill = small_disk
    job = site.submit("--run-dir", str(folder / "run"))
    job.wait()
    filler = fill()
    ready_at = job.read("endpoint.json")["heartbeat_at"]
    time.sleep(7)  # longer than a heartbeat
    assert job.ask()[0] == 200
    assert job.read("endpoint.json")["heartbeat_at"] == ready_at  # whole, and the last one
    assert job.status()["state"] == "ready"
    filler.unlink()
    job.eventually(
        lambda: job.read("endpoint.json")["heartbeat_at"] > ready_at, "another heartbeat"
    )
    job.hpc("cancel")
    job.until("finished")


def test_answers_and_status_go_on_while_slurmctld_is_down_for_a_minute(site):
    job = site.submit("--nodes", "2", "--tp", "2")
    job.wait()
    site.slurm.stop_controller()
    try:
        time.sleep(61)  # than which no heartbeat may be older
        assert job.ask()[0] == 200
        said = job.status()
        assert (said["state"], said["slurm_state"]) == ("ready", None)
        assert json.loads(site.hpc("ps", "--json").stdout)[0]["state"] == "ready"
        assert job.hpc("endpoint").returncode == 0
    finally:
        site.slurm.start_controller()
    job.hpc("cancel")
    job.until("finished")


def test_batch_run_goes_on_after_a_requeue_until_its_file_is_done(site, nothing_left):
    steps = site.home / "steps"
    worker = site.home / "worker.sh"
    # A batch engine that stops early twice (75: running it again goes on), then is done.
    worker.write_text(
        f"#!/bin/bash\necho step >> {steps}\n[[ $(wc -l < {steps}) -ge 3 ]] && exit 0\nexit 75\n"
    )
    rows = site.home / "rows in.jsonl"
    rows.write_text('{"prompt": "hello"}\n')
    done = site.hpc(
        "batch",
        str(rows),
        "-o",
        str(site.home / "out.jsonl"),
        "--launcher",
        "slurm",
        "--continue-with",
        "requeue",
        "--engine-command",
        f"bash {worker}",
        "--time",
        "10",
        "--model",
        "/tmp",
    )
    job_id = done.stdout.split()[1]
    for _ in range(2):
        site.slurm.release(job_id)
    site.hpc("wait", job_id, "--timeout", "60")
    assert steps.read_text().count("step") == 3
