"""What SLURM's commands are asked and told, whatever the user's own habits are."""

from __future__ import annotations

import errno
import time

import pytest

from hpcserve.errors import SlurmError
from hpcserve.launcher import deadline, slurm_query
from hpcserve.launcher.slurm_query import SlurmJobInfo


def test_a_users_own_formats_and_filters_do_not_count(fake_slurm, monkeypatch):
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    monkeypatch.setenv("SQUEUE_PARTITION", "mine")
    monkeypatch.setenv("SCANCEL_INTERACTIVE", "true")
    slurm_query.command("squeue")
    seen = fake_slurm.environment()
    assert seen["SLURM_TIME_FORMAT"] == "standard"
    assert not {"SQUEUE_PARTITION", "SCANCEL_INTERACTIVE"} & set(seen)
    slurm_query.command("sbatch")  # passes on to the job what is the user's
    assert fake_slurm.environment()["SLURM_TIME_FORMAT"] == "relative"


def test_a_machine_without_processes_to_spare_is_no_end_of_a_supervisor(monkeypatch):
    def run(*_, **__):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(slurm_query.subprocess, "run", run)
    with pytest.raises(SlurmError, match="cannot run squeue: Resource temporarily unavailable"):
        slurm_query.command("squeue")
    known = deadline.Deadline(lambda: slurm_query.command("squeue"))
    known.refresh()
    assert known.seconds_left() == float("inf")


@pytest.mark.parametrize(
    ("state", "waits", "runs"),
    [
        ("PENDING", True, False),
        ("REQUEUE_HOLD", True, False),
        ("SPECIAL_EXIT", True, False),
        ("RUNNING", False, True),
        ("STAGE_OUT", False, True),
        ("SIGNALING", False, True),
        ("FAILED", False, False),
    ],
)
def test_states_between_the_queue_and_the_end(state, waits, runs):
    info = SlurmJobInfo("1", state)
    assert (info.waiting, info.running, info.active) == (waits, runs, waits or runs)


def test_srun_is_given_a_tasks_own_number(fake_slurm):
    assert slurm_query.srun_id("12") == "12"
    fake_slurm.says("squeue", stdout="15\n")
    assert slurm_query.srun_id("12_3") == "15"
    assert fake_slurm.calls("squeue") == [["-h", "-r", "-o", "%A", "-j", "12_3"]]
    fake_slurm.says("squeue")
    with pytest.raises(SlurmError, match="hpcserve status 12_3"):
        slurm_query.srun_id("12_3")


def test_the_end_is_read_from_slurms_own_time(fake_slurm):
    fake_slurm.says("squeue", stdout="7|RUNNING|None|2030-01-01T00:00:00|n1|1|name\n")
    known = deadline.of_slurm_job("7")
    known.refresh()
    at = time.mktime(time.strptime("2030-01-01", "%Y-%m-%d"))
    assert known.end_time_s == at
