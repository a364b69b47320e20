"""The job that goes on after another: one at a time, noted where others look, off lost nodes."""

from __future__ import annotations

import pytest

from hpcserve.launcher import job_dir as job_dirs
from hpcserve.launcher.base import JobEnvironment
from hpcserve.launcher.cancel import cancel
from hpcserve.launcher.followup import Chain
from hpcserve.launcher.job_dir import JobDir, register
from hpcserve.launcher.resolve import find
from hpcserve.launcher.status import status

ROW = "{id}|{state}|None|2030-01-01T00:00:00|n1|1|name\n"


@pytest.fixture
def folder(fake_slurm, tmp_path):
    fake_slurm.says("sbatch", stdout="13\n")
    job_dir = JobDir.create(tmp_path / "run")
    job_dir.script.write_text("#!/bin/bash\n")
    job_dir.update_job(name="chained", kind="serve", job_ids=["12"])
    register("12", job_dir.path)
    return job_dir


def here(job_id="12", task=None):
    return JobEnvironment(job_id, 0, 1, ("n1",), "n1", array_task_id=task)


def test_a_job_that_slurm_starts_anew_keeps_the_follow_up_that_waits(fake_slurm, folder):
    Chain(here(), folder, early=True).prepare()
    fake_slurm.says("squeue", stdout=ROW.format(id="13", state="PENDING"))
    again = Chain(here(), folder, early=True)
    again.prepare()
    assert len(fake_slurm.calls("sbatch")) == 1  # two would run at once in the same folder
    assert again.go_on(()) == "job 13 goes on after this one"
    again.drop()
    assert fake_slurm.calls("scancel") == [["13"]]


def test_a_follow_up_that_is_gone_is_replaced(fake_slurm, folder):
    Chain(here(), folder, early=True).prepare()
    fake_slurm.says("squeue", stdout=ROW.format(id="13", state="CANCELLED"))
    fake_slurm.says("sbatch", stdout="14\n")
    Chain(here(), folder, early=True).prepare()
    assert folder.read_job()["job_ids"] == ["12", "13", "14"]


def test_a_task_of_an_array_is_followed_by_one_of_its_own_number(fake_slurm, folder):
    folder.update_job(replicas=4, login_host="login1")
    task = JobDir.create(folder.task("3").path)
    Chain(here("12_3", "3"), task, early=True).prepare()
    (words,) = fake_slurm.calls("sbatch")
    assert {"--dependency=afterany:12_3", "--array=3"} <= set(words)
    fake_slurm.says(
        "squeue",
        stdout=ROW.format(id="12_3", state="FAILED") + ROW.format(id="13_3", state="RUNNING"),
    )
    assert status(find("12_3"), thorough=True).job_id == "13_3"
    assert (find("13_3").name, find("13_3").job_dir.described()["login_host"]) == (
        "chained",
        "login1",
    )
    # The follow-up first, else it starts in the moment that its task ends.
    assert cancel(find("12_3")) == ["13_3"]
    assert cancel(find("12")) == ["13_3"]


def test_nodes_that_the_user_left_out_stay_out(fake_slurm, folder):
    fake_slurm.says("scontrol", stdout="JobId=12\n   ReqNodeList=(null) ExcNodeList=bad[1-2]\n")
    Chain(here(), folder, early=False).go_on(["n7"])
    assert "--exclude=bad[1-2],n7" in fake_slurm.calls("sbatch")[0]
    waiting = Chain(here(), folder, early=True)
    waiting.prepare()
    waiting.go_on(["n8"])
    assert ["update", "JobId=13", "ExcNodeList=bad[1-2],n8"] in fake_slurm.calls("scontrol")


def test_a_node_that_cannot_be_left_out_ends_no_chain(fake_slurm, folder):
    chain = Chain(here(), folder, early=True)
    chain.prepare()
    fake_slurm.says("scontrol", stderr="Requested node configuration is not available", code=1)
    assert "13" in chain.go_on(["n8"])


def test_a_follow_up_that_cannot_be_noted_is_queued_all_the_same(fake_slurm, folder, monkeypatch):
    file = folder.path / "no folder"
    file.touch()
    monkeypatch.setattr(job_dirs, "index_folder", lambda: file)
    chain = Chain(here(), folder, early=True)
    chain.prepare()
    assert "13" in chain.go_on(())
