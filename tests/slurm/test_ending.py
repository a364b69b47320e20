"""How jobs end: cancelled, warned, out of time, preempted; and how they go on."""

from __future__ import annotations

import json
import threading
import time

import pytest

pytestmark = pytest.mark.xdist_group("slurm")  # one Slurm, on one worker


def warn(job, signal="USR1"):
    job.site.slurm.run("scancel", "--batch", f"--signal={signal}", job.job_id)


def ask_slowly(job, answers):
    """A request that takes some seconds, in the background."""

    def ask():
        import urllib.request

        endpoint = job.read("endpoint.json")
        key = (job.run_dir / "api_key").read_text().strip()
        request = urllib.request.Request(
            f"{endpoint['url']}/completions",
            data=json.dumps({"model": "fake", "prompt": "hello"}).encode(),
            headers={"Authorization": f"Bearer {key}"},
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            answers.append(json.loads(answer.read()))

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.5)
    return thread


def test_scancel_lets_a_running_request_finish(site, nothing_left):
    job = site.submit("--nodes", "2", "--tp", "2", fake="slow=2")
    job.wait()
    answers = []
    asking = ask_slowly(job, answers)
    site.slurm.run("scancel", job.job_id)
    asking.join()
    assert answers[0]["choices"][0]["text"] == "hello and so on"
    said = job.until("finished")
    assert said["cause"].startswith("cancelled")


def test_an_engine_that_ignores_the_end_is_killed_within_kill_wait(site, nothing_left):
    job = site.submit("--nodes", "2", "--tp", "2", fake="stubborn")
    job.wait()
    started = time.monotonic()
    site.slurm.run("scancel", job.job_id)
    said = job.until("dead", "finished", timeout=20)
    assert said["cause"].startswith("cancelled")
    assert time.monotonic() - started < site.slurm.kill_wait_s + 6


def test_early_warning_drains_requeues_and_answers_again(site, nothing_left):
    job = site.submit("--nodes", "2", "--tp", "2", "--continue-with", "requeue", fake="slow=2")
    job.wait()
    before = job.read("endpoint.json")
    answers = []
    asking = ask_slowly(job, answers)
    warn(job)
    warn(job)  # a second one changes nothing
    asking.join()
    assert answers
    job.until("pending", timeout=20)
    assert "time limit" in job.status()["cause"]
    assert not (job.run_dir / "control.json").exists() or job.read("control.json")["drain"]
    site.slurm.release(job.job_id)
    job.wait(timeout=40)
    after = job.read("endpoint.json")
    assert (before["restart_count"], after["restart_count"]) == (0, 1)
    assert job.ask()[0] == 200
    log = job.hpc("logs").stdout
    assert log.count("ready at") == 2  # --open-mode=append keeps the first run's words


def test_without_progress_it_is_not_requeued(site):
    job = site.submit("--continue-with", "requeue", fake="load=60")
    job.until("loading")
    warn(job)
    said = job.until("dead")
    assert "no progress" in said["message"]
    assert job.hpc("wait", check=False).returncode == 1


def test_restarts_are_capped(site):
    job = site.submit("--continue-with", "requeue", "--max-restarts", "0")
    job.wait()
    warn(job)
    assert "--max-restarts 0" in job.until("dead")["message"]


def test_chain_goes_on_in_a_new_job_and_cancel_ends_both(site, nothing_left):
    job = site.submit("--continue-with", "chain", "-J", "chained")
    job.wait()
    ids = job.read("job.json")["job_ids"]
    assert len(ids) == 2  # queued before it is needed, so that not even SIGKILL loses it
    assert site.squeue(ids[1]) == "PENDING"
    warn(job)
    follower = job.__class__(site, ids[1], job.run_dir)
    follower.until("ready", timeout=40)
    assert job.read("endpoint.json")["job_id"] == ids[1]
    assert job.read("endpoint.json")["restart_count"] == 1
    site.hpc("cancel", "chained")
    follower.until("finished")
    ids = job.read("job.json")["job_ids"]
    eventually_gone(site, ids)


def test_chain_survives_a_killed_supervisor(site, nothing_left):
    job = site.submit("--continue-with", "chain")
    job.wait()
    follower = job.__class__(site, job.read("job.json")["job_ids"][1], job.run_dir)
    for process in job.processes("hpcserve job"):
        process.kill()
    follower.until("ready", timeout=40)
    assert follower.ask()[0] == 200


def eventually_gone(site, ids):
    deadline = time.monotonic() + 20
    while any(site.squeue(one) in ("PENDING", "RUNNING", "COMPLETING") for one in ids):
        assert time.monotonic() < deadline, [site.squeue(one) for one in ids]
        time.sleep(0.2)


def test_time_limit_is_known_and_drained_before(site, nothing_left):
    # The early warning is turned off: the supervisor must know the end by itself.
    # A minute is the shortest limit; the drain begins drain and margin, 50 s, before its end.
    job = site.submit("--time", "1", "--signal", "B:CONT@1", "--drain", "35")
    job.wait()
    said = job.until("dead", timeout=70)
    assert said["cause"].startswith("time limit: SLURM ends the job in")
    assert site.squeue(job.job_id) in ("FAILED", "COMPLETED")  # it ended before SLURM had to


def test_time_limit_strikes_in_a_drain_that_is_stuck(site, nothing_left):
    job = site.submit("--nodes", "2", "--tp", "2", "--drain", "90", fake="stubborn")
    job.wait()
    warn(job)
    job.until("draining")
    site.slurm.run("scontrol", "update", f"JobId={job.job_id}", "EndTime=now+1")
    # SLURM looks for jobs that are over their time every 30 s.
    said = job.until("dead", timeout=1 + 30 + site.slurm.kill_wait_s + 15)
    assert said["cause"].startswith("time limit")


def test_preempted_job_comes_back(site, nothing_left):
    job = site.submit(
        "--continue-with", "requeue", "--sbatch", "exclusive", "--nodes", "3", "--tp", "3"
    )
    job.wait()
    site.slurm.run(
        "sbatch",
        "--partition=urgent",
        "--nodes=3",
        "--exclusive",
        "--time=1",
        "--output=/dev/null",
        "--wrap=sleep 3",
    )
    job.until("draining", "pending", timeout=30)
    site.slurm.release(job.job_id)
    job.wait(timeout=60)
    assert job.read("endpoint.json")["restart_count"] == 1
