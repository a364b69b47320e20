"""A job that goes on in another one: what its status is between the two, and under which names."""

from __future__ import annotations

import json
import time

import pytest
from click.testing import CliRunner

from hpcserve.cli.main import main
from hpcserve.errors import JobNotFoundError
from hpcserve.launcher.base import JobState
from hpcserve.launcher.files import write_json
from hpcserve.launcher.job_dir import JobDir, register
from hpcserve.launcher.resolve import find
from hpcserve.launcher.status import status


def row(job_id, state):
    return f"{job_id}|{state}|None|2030-01-01T00:00:00|n1|1|name\n"


@pytest.fixture
def chained(fake_slurm, tmp_path):
    """Job 12, and job 13 that waits for its end; `says` is the supervisor's word."""
    job_dir = JobDir.create(tmp_path / "run")
    job_dir.update_job(name="chained", kind="serve", job_ids=["12", "13"])
    for job_id in ("12", "13"):
        register(job_id, job_dir.path)

    def says(job_id, state, **more):
        content = {"job_id": job_id, "state": state, "heartbeat_at": time.time(), **more}
        write_json(job_dir.state, {"cause": None, "kind": "serve", **content})

    return job_dir, says, fake_slurm


LIMIT = {"kind": "time limit", "detail": "x"}


@pytest.mark.parametrize(
    ("said", "ended"),
    [
        ({"state": "pending", "cause": LIMIT}, "FAILED"),  # its supervisor saw the end
        ({"state": "ready", "heartbeat_at": 0}, "TIMEOUT"),  # it was killed outright
    ],
)
def test_between_two_jobs_of_a_chain_it_waits_and_is_not_dead(chained, said, ended):
    _, says, slurm = chained
    says("12", **said)
    slurm.says("squeue", stdout=row("12", ended) + row("13", "PENDING"))
    found = status(find("12"), thorough=True)
    assert (found.job_id, found.state) == ("13", JobState.PENDING)
    assert found.cause.startswith("time limit")
    slurm.says("squeue", stdout=row("12", ended) + row("13", "CANCELLED"))
    assert status(find("12"), thorough=True).state is JobState.DEAD


def test_what_the_supervisor_calls_dead_is_dead(chained):
    _, says, slurm = chained
    says("12", "dead", cause={"kind": "crashed", "detail": "x"})
    slurm.says("squeue", stdout=row("12", "FAILED") + row("13", "PENDING"))
    assert status(find("12"), thorough=True).state is JobState.DEAD


def test_a_name_and_a_folder_mean_the_job_that_runs(chained):
    job_dir, says, slurm = chained
    slurm.says("squeue", stdout=row("12", "RUNNING") + row("13", "PENDING"))
    says("12", "ready")
    for name in ("chained", str(job_dir.path), "12"):
        assert status(find(name), thorough=True).state is JobState.READY, name
    assert status(find("13"), thorough=True).state is JobState.PENDING
    says("13", "loading")
    for name in ("chained", str(job_dir.path), "12", "13"):
        assert status(find(name), thorough=True).job_id == "13", name


def test_each_job_stands_once_in_the_list(chained):
    _, says, slurm = chained
    says("13", "ready")
    slurm.says("squeue", stdout=row("13", "RUNNING"))
    done = CliRunner().invoke(main, ["ps", "--json"])
    assert [one["job_id"] for one in json.loads(done.stdout)] == ["13"]


def test_a_job_that_was_requeued_by_hand_is_pending_and_not_over(chained):
    _, says, slurm = chained
    says("12", "dead", cause={"kind": "crashed", "detail": "x"})
    slurm.says("squeue", stdout=row("12", "PENDING"))
    assert status(find("12"), thorough=True).state is JobState.PENDING


def test_a_worker_that_still_waits_does_not_undo_a_finished_run(fake_slurm, tmp_path):
    job_dir = JobDir.create(tmp_path / "run")
    job_dir.update_job(name="array", kind="batch", job_ids=["12"], replicas=2)
    register("12", job_dir.path)
    for number in "01":
        JobDir.create(job_dir.task(number).path)
    write_json(job_dir.task("0").state, {"state": "finished", "heartbeat_at": 0, "kind": "batch"})
    fake_slurm.says("squeue", stdout=row("12_0", "COMPLETED") + row("12_1", "PENDING"))
    assert status(find("12"), thorough=True).state is JobState.FINISHED


def test_a_heartbeat_from_the_future_is_no_sign_of_life(chained):
    _, says, slurm = chained
    says("12", "ready", heartbeat_at=time.time() + 3600)
    slurm.says("squeue", stderr="Unable to contact slurm controller", code=1)
    assert status(find("12")).state is JobState.UNKNOWN


def test_a_folder_here_is_a_run_directory(chained, monkeypatch):
    job_dir, _, _ = chained
    monkeypatch.chdir(job_dir.path.parent)
    assert find("run").job_dir.path == job_dir.path
    with pytest.raises(JobNotFoundError):
        find("fake-slurm")


@pytest.mark.parametrize(("replicas", "said"), [(2, "tasks 0 to 1"), (1, "no array")])
def test_a_task_that_the_array_has_not_is_not_dead(chained, replicas, said):
    job_dir, _, _ = chained
    job_dir.update_job(replicas=replicas)
    with pytest.raises(JobNotFoundError, match=said):
        find("12_7")


def test_a_tunnel_leads_to_a_server_that_answers(chained):
    job_dir, says, _ = chained
    job_dir.update_job(login_host="login1")
    write_json(job_dir.endpoint, {"url": "u", "address": "10.0.0.7", "port": 81})
    says("12", "ready")
    shown = CliRunner().invoke(main, ["tunnel", "12"])
    assert "8000:10.0.0.7:81" in shown.stdout and "@login1" in shown.stdout
    says("12", "dead", cause={"kind": "out of memory", "detail": "x"})
    shown = CliRunner().invoke(main, ["tunnel", "12"])
    assert (shown.exit_code, shown.stdout) == (1, "")
    assert "out of memory" in shown.stderr


@pytest.mark.parametrize("block", [3, 1 << 16])
def test_logs_show_the_last_lines_and_one_that_was_cut_off(chained, monkeypatch, block):
    monkeypatch.setattr("hpcserve.cli.logs.BLOCK", block)
    job_dir, _, _ = chained
    job_dir.job_log.write_text("".join(f"line {number}\n" for number in range(50)) + "Killed")
    done = CliRunner().invoke(main, ["logs", "12", "-n", "3"])
    assert done.stdout.splitlines() == ["job | line 48", "job | line 49", "job | Killed"]
