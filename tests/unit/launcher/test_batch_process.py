"""Jobs that were submitted with plain sbatch are found again, and so are their logs."""

from __future__ import annotations

import pytest

from hpcserve.launcher.base import JobEnvironment
from hpcserve.launcher.batch_process import _adopt
from hpcserve.launcher.job_dir import JobDir
from hpcserve.launcher.resolve import find


def here(job_id, task=None):
    return JobEnvironment(job_id, 0, 1, ("n1",), "n1", array_task_id=task)


@pytest.fixture
def folder(fake_slurm, tmp_path):
    return JobDir.create(tmp_path / "run")


def test_a_job_of_plain_sbatch_is_known_with_its_log(fake_slurm, folder, tmp_path):
    for number in ("7", "8"):  # the second in the same folder, after the first one's log is gone
        log = tmp_path / f"slurm {number}.log"
        fake_slurm.says("scontrol", stdout=f"JobId={number}\n   StdOut={log}\n")
        _adopt(folder, here(number), "serve", on_slurm=True)
        assert folder.job_log.readlink() == log
    assert (find("7").job_dir, find("8").name) == (folder, "run")


def test_a_task_of_a_plain_array_is_known_by_its_own_id(folder):
    _adopt(folder, here("12_3", "3"), "serve", on_slurm=False)
    assert find("12_3").job_dir == folder


def test_a_task_of_a_submitted_array_is_known_by_its_array(folder):
    task = JobDir.create(folder.task("3").path)
    _adopt(task, here("12_3", "3"), "serve", on_slurm=False)
    assert not task.job.exists()
