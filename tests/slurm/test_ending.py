"""How jobs end: cancelled, warned, out of time, preempted; and how they go on."""

from __future__ import annotations

import json
import threading
import urllib.request


def warn(job, signal="USR1"):
    job.site.slurm.run("scancel", "--batch", f"--signal={signal}", job.job_id)


def ask_slowly(job, answers):
    """A request that takes some seconds, in the background; returns once it runs."""
    endpoint = job.read("endpoint.json")

    def ask():
        key = (job.run_dir / "api_key").read_text().strip()
        request = urllib.request.Request(
            f"{endpoint['url']}/completions",
            data=json.dumps({"model": "fake", "prompt": "hello"}).encode(),
            headers={"Authorization": f"Bearer {key}"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            answers.append(json.loads(answer.read()))

    def runs():
        health = f"{endpoint['url'].removesuffix('/v1')}/health"
        with urllib.request.urlopen(health, timeout=60) as answer:
            return json.loads(answer.read())["running"] > 0

    thread = threading.Thread(target=ask)
    thread.start()
    job.eventually(runs, "the request runs")
    return thread


def test_scancel_lets_a_running_request_finish(site, nothing_left):
    job = site.submit("--nodes", "2", "--tp", "2", "--drain", "15", fake="slow=2")
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
    site.slurm.run("scancel", job.job_id)
    said = job.until("dead", "finished")
    assert said["cause"].startswith("cancelled")
    # The supervisor said so itself: SLURM did not have to kill it.
    assert job.read("state.json")["state"] in ("dead", "finished")


def test_early_warning_drains_requeues_and_answers_again(site, nothing_left):
    options = ("--continue-with", "requeue", "--drain", "15")
    job = site.submit("--nodes", "2", "--tp", "2", *options, fake="slow=2")
    job.wait()
    before = job.read("endpoint.json")
    answers = []
    asking = ask_slowly(job, answers)
    warn(job)
    warn(job)  # a second one changes nothing
    asking.join()
    assert answers
    job.until("pending")
    assert "time limit" in job.status()["cause"]
    assert not (job.run_dir / "control.json").exists() or job.read("control.json")["drain"]
    site.slurm.release(job.job_id)
    job.wait()
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
    follower.until("ready")
    assert job.read("endpoint.json")["job_id"] == ids[1]
    assert job.read("endpoint.json")["restart_count"] == 1
    site.hpc("cancel", "chained")
    follower.until("finished")
    ids = job.read("job.json")["job_ids"]
    eventually_gone(job, ids)


def test_chain_survives_a_killed_supervisor(site, nothing_left):
    job = site.submit("--continue-with", "chain")
    job.wait()
    follower = job.__class__(site, job.read("job.json")["job_ids"][1], job.run_dir)
    for process in job.processes("hpcserve job"):
        process.kill()
    follower.until("ready")
    assert follower.ask()[0] == 200


def eventually_gone(job, ids):
    waits_or_runs = ("PENDING", "RUNNING", "COMPLETING")
    job.eventually(
        lambda: not any(job.site.squeue(one) in waits_or_runs for one in ids), "the end of all"
    )


def test_time_limit_is_known_and_drained_before(site, nothing_left):
    # The early warning is turned off: the supervisor must know the end by itself.
    # A minute is the shortest limit; the drain begins drain and margin, 50 s, before its end.
    # Whether the server is up by then does not matter here.
    job = site.submit("--time", "1", "--signal", "B:CONT@1", "--drain", "35")
    said = job.until("dead", timeout=120)
    assert said["cause"].startswith("time limit: SLURM ends the job in")
    # It ended before SLURM had to end it.
    job.eventually(lambda: site.squeue(job.job_id) in ("FAILED", "COMPLETED"), "SLURM's word")


def test_time_limit_strikes_in_a_drain_that_is_stuck(site, nothing_left):
    job = site.submit("--nodes", "2", "--tp", "2", "--drain", "90", fake="stubborn")
    job.wait()
    warn(job)
    job.until("draining")
    site.slurm.run("scontrol", "update", f"JobId={job.job_id}", "EndTime=now+1")
    # SLURM looks for jobs that are over their time every 30 s.
    said = job.until("dead", timeout=1 + 30 + site.slurm.kill_wait_s + 60)
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
    job.until("draining", "pending")
    site.slurm.release(job.job_id)
    job.wait()
    assert job.read("endpoint.json")["restart_count"] == 1


def test_a_requeue_by_hand_runs_the_job_again(site, nothing_left):
    """As administrators do before they take a node away; the job was not told to go on."""
    job = site.submit("--nodes", "2", "--tp", "2")
    job.wait()
    site.slurm.run("scontrol", "requeue", job.job_id)
    job.eventually(lambda: job.read("state.json")["state"] == "pending", "the supervisor's word")
    assert job.status()["cause"].startswith("requeued")
    site.slurm.release(job.job_id)
    job.until("ready")
    assert job.read("endpoint.json")["restart_count"] == 1


def test_servers_of_an_array_are_chained_each_for_itself(site, nothing_left):
    job = site.submit("--replicas", "2", "--continue-with", "chain", "-J", "pair")
    job.wait()
    task = f"{job.job_id}_0"
    number = site.slurm.run("squeue", "-h", "-r", "-o", "%A", "-j", task)
    assert site.hpc("exec", task, "--", "printenv", "SLURM_JOB_ID").stdout == number
    one, follower = job.read("tasks/0/job.json")["job_ids"]
    assert (one, follower.endswith("_0"), site.squeue(follower)) == (task, True, "PENDING")
    site.slurm.run("scancel", "--batch", "--signal=USR1", task)
    job.eventually(lambda: site.job(task).status()["job_id"] == follower, "the next job of task 0")
    site.job(task).until("ready")
    site.hpc("cancel", "pair")
    eventually_gone(job, [job.job_id, follower])
