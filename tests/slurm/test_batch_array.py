"""`hpcserve batch --jobs`: a job array whose tasks share the rows of one run."""

from __future__ import annotations

import json

import pytest

ONE_THREAD = {"OMP_NUM_THREADS": "1"}
NUM_ROWS = 60


@pytest.fixture
def array(site):
    """Submits a run of two workers; returns the job and the output."""
    (site.home / "cluster.yaml").write_text(
        "gpu-request: none\ndevice: cpu\nifname: lo\ncpu-threads: 1\n"
    )
    rows, answers = site.home / "questions.jsonl", site.home / "answers.jsonl"
    rows.write_text("".join(f'{{"prompt": "Count to {number}:"}}\n' for number in range(NUM_ROWS)))
    # Neither begins before the other is there, else one might answer everything.
    came = f"{site.home}/came-"
    meet = (
        f"touch {came}$SLURM_ARRAY_TASK_ID; until [[ -e {came}0 && -e {came}1 ]]; do sleep 1; done"
    )

    def submit(*words):
        done = site.hpc(
            *("batch", str(rows), "-o", str(answers), "--launcher", "slurm", "--time", "10"),
            *("--jobs", "2", "--shard-rows", "4", "--max-running-requests", "2", "--drain", "6"),
            *("--max-tokens", "60", "--sampling", "ignore_eos=true", "--setup", meet, *words),
            env=ONE_THREAD,
        )
        return site.job(done.stdout.split()[1]), answers

    return submit


def run_status(site, answers):
    said = site.hpc("batch", "status", str(answers), "--json", check=False).stdout
    return json.loads(said) if said else {"num_finished": 0, "workers": []}


def both_work(site, answers):
    workers = run_status(site, answers)["workers"]
    return sum(one["num_rows"] > 0 for one in workers) == 2


def check_complete(site, answers):
    site.hpc("batch", "verify", str(answers))
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    assert len(lines) == NUM_ROWS
    assert all(line["error"] is None for line in lines)


def states(job):
    said = job.site.slurm.run("squeue", "-h", "-r", "-t", "all", "-o", "%i %T", "-j", job.job_id)
    return dict(line.split() for line in said.splitlines())


def test_tasks_share_the_rows_and_survive_the_death_of_one(site, array, nothing_left):
    job, answers = array()
    job.eventually(lambda: both_work(site, answers), "rows of both tasks", 120.0)
    site.slurm.run("scancel", "--signal=KILL", "--full", f"{job.job_id}_1")
    job.wait(timeout=200)
    check_complete(site, answers)
    assert states(job)[f"{job.job_id}_0"] == "COMPLETED"
    # The dead one's rows were taken over: nobody had to run anything again.
    workers = run_status(site, answers)["workers"]
    assert sum(one["num_rows"] for one in workers) >= NUM_ROWS
    assert len(workers) == 2


def test_a_requeued_task_joins_the_run_again_and_does_not_start_it_over(site, array, nothing_left):
    job, answers = array("--continue-with", "requeue", "--fresh")
    job.eventually(lambda: both_work(site, answers), "rows of both tasks", 120.0)
    begun = json.loads((answers.parent / "answers.jsonl.hpcserve/manifest.json").read_bytes())
    site.slurm.run("scancel", "--batch", "--signal=USR1", f"{job.job_id}_0")
    site.slurm.release(f"{job.job_id}_0")
    assert run_status(site, answers)["num_finished"] > 0
    site.job(f"{job.job_id}_0").wait(timeout=200)
    site.job(f"{job.job_id}_1").wait(timeout=200)
    check_complete(site, answers)
    now = json.loads((answers.parent / "answers.jsonl.hpcserve/manifest.json").read_bytes())
    assert now["run_id"] == begun["run_id"]
    assert site.job(f"{job.job_id}_0").status()["restart_count"] == 1
