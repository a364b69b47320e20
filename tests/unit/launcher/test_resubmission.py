"""A run directory that held a job before, and a submission that meets its own job there."""

from __future__ import annotations

import time

import pytest
from click.testing import CliRunner

from hpcserve.cli.main import main
from hpcserve.launcher.files import write_json
from hpcserve.launcher.job_dir import JobDir
from hpcserve.launcher.resolve import find, tasks_of
from hpcserve.launcher.slurm import SlurmLauncher

ENDED = "4711|COMPLETED|None|2030-01-01T00:00:00|n1|1|name\n"


@pytest.fixture
def submit(fake_slurm, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("HPCSERVE_CLUSTER", raising=False)
    monkeypatch.setenv("HPCSERVE_LAUNCHER", "auto")
    fake_slurm.says("sbatch", stdout="4711\n")

    def submit(*words, code=0):
        line = ["submit", "org/model", "--run-dir", str(tmp_path / "run"), *words]
        done = CliRunner().invoke(main, line)
        assert done.exit_code == code, (done.output, done.exception)
        return done.output

    return JobDir(tmp_path / "run"), submit, fake_slurm


def test_a_key_of_before_does_not_close_a_server_without_one(submit):
    job_dir, submit, slurm = submit
    submit("--replicas", "2")
    assert job_dir.api_key.is_file()
    slurm.says("squeue", stdout=ENDED)
    submit("--replicas", "2", "--no-auth")
    assert not job_dir.api_key.is_file()
    assert not job_dir.task("0").api_key.is_file()


@pytest.mark.parametrize(("said", "refused"), [("ready", True), ("dead", False)])
def test_two_jobs_do_not_share_a_run_directory(submit, said, refused):
    job_dir, submit, slurm = submit
    submit()
    write_json(job_dir.state, {"job_id": "4711", "state": said, "heartbeat_at": time.time()})
    slurm.says("squeue", stdout=ENDED.replace("COMPLETED", "RUNNING" if refused else "FAILED"))
    text = submit(code=2 if refused else 0)
    assert ("name another --run-dir" in text) is refused
    assert len(slurm.calls("sbatch")) == (1 if refused else 2)


def test_a_job_that_is_queued_and_cannot_be_noted_is_named(submit, tmp_path):
    _, submit, slurm = submit
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "jobs").touch()
    assert "job 4711 is submitted" in submit(code=2)
    assert len(slurm.calls("sbatch")) == 1


def test_a_job_that_starts_before_it_is_noted_keeps_its_place(submit, monkeypatch):
    """Its supervisor may have queued the job after it by then."""
    job_dir, submit, _ = submit

    def quick(self, script, run_dir, *, replicas=1):
        job_dir.add_job_ids("4711")
        job_dir.add_job_ids("4712")
        return "4711"

    monkeypatch.setattr(SlurmLauncher, "submit", quick)
    submit("--launcher", "slurm")
    assert job_dir.read_job()["job_ids"] == ["4711", "4712"]


def test_tasks_of_an_earlier_larger_array_are_not_ours(submit):
    _, submit, slurm = submit
    submit("--replicas", "3")
    slurm.says("squeue", stdout=ENDED)
    assert len(tasks_of(find("4711"))) == 3
    submit("--replicas", "2")
    assert [one.job_id for one in tasks_of(find("4711"))] == ["4711_0", "4711_1"]
    submit()
    assert tasks_of(find("4711")) == []
