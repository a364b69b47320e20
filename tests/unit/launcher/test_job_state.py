"""What a job's files and SLURM's answers say together of its state."""

from __future__ import annotations

import json
import time

import pytest

from hpcserve.launcher import slurm_query
from hpcserve.launcher.base import JobState
from hpcserve.launcher.job_dir import JobDir
from hpcserve.launcher.resolve import find
from hpcserve.launcher.status import status

QUEUE = "4711|{state}|None|2030-01-01T00:00:00|n1|1|name\n"


def write_state(job_dir, **values):
    base = {
        "state": "ready",
        "job_id": "4711",
        "heartbeat_at": time.time(),
        "cause": None,
    }
    job_dir.state.write_text(json.dumps({**base, **values}))


@pytest.mark.parametrize(
    ("queue", "said", "state", "cause"),
    [
        ("PENDING", None, JobState.PENDING, None),
        ("RUNNING", None, JobState.STARTING, None),
        ("RUNNING", {}, JobState.READY, None),
        ("TIMEOUT", {}, JobState.DEAD, "time limit"),
        ("NODE_FAIL", {}, JobState.DEAD, "node failure"),
        ("OUT_OF_MEMORY", {}, JobState.DEAD, "out of memory"),
        ("CANCELLED", None, JobState.DEAD, "cancelled"),
        (
            "FAILED",
            {"state": "dead", "cause": {"kind": "crashed", "detail": "x"}},
            JobState.DEAD,
            "crashed: x",
        ),
        ("COMPLETED", {"state": "finished"}, JobState.FINISHED, None),
        ("", {"heartbeat_at": 0}, JobState.DEAD, "crashed: it vanished"),  # forgotten by SLURM
    ],
)
def test_state_is_the_supervisors_word_checked_by_slurm(slurm, queue, said, state, cause, run):
    run("submit", "org/model")
    slurm.says("sacct", stderr="Slurm accounting storage is disabled\n", code=1)
    slurm.says("squeue", stdout=QUEUE.format(state=queue) if queue else "")
    if said is not None:
        write_state(find("4711").job_dir, **said)
    found = status(find("4711"), thorough=True)
    assert found.state is state
    assert (found.cause or "").startswith(cause or "")
    assert bool(found.cause) is bool(cause)


@pytest.mark.parametrize(("age", "state"), [(0, JobState.READY), (3600, JobState.UNKNOWN)])
def test_a_slurm_that_does_not_answer_says_nothing_about_the_job(slurm, age, state, run):
    run("submit", "org/model")
    slurm.says(
        "squeue", stderr="slurm_load_jobs error: Unable to contact slurm controller\n", code=1
    )

    write_state(find("4711").job_dir, heartbeat_at=time.time() - age)
    found = status(find("4711"))
    assert found.state is state
    assert found.slurm_state is None


def test_a_supervisor_that_has_just_spoken_needs_no_second_opinion(slurm, run):
    run("submit", "org/model")
    write_state(find("4711").job_dir)
    assert "ready" in run("ps").stdout
    assert slurm.calls("squeue") == []
    write_state(find("4711").job_dir, heartbeat_at=0)
    run("ps")
    assert len(slurm.calls("squeue")) == 1


def test_wait_fails_at_once_for_a_dead_job(slurm, run):
    run("submit", "org/model")
    slurm.says("squeue", stdout=QUEUE.format(state="OUT_OF_MEMORY"))
    assert "out of memory" in run("wait", "4711", code=1).output


def test_accounting_is_asked_when_the_queue_has_forgotten(slurm):
    slurm.says("sacct", stdout="9|CANCELLED by 0|None|2030-01-01T00:00:00|n1|1|x\n")
    assert slurm_query.job("9").state == "CANCELLED"


def test_torn_files_read_as_none(slurm, run):
    run("submit", "org/model")
    job_dir = JobDir(find("4711").job_dir.path)
    job_dir.state.write_text('{"state": "rea')
    job_dir.events.write_text('{"event": "started"}\n{"event": "sta')
    slurm.says("squeue", stdout=QUEUE.format(state="RUNNING"))
    assert status(find("4711")).state is JobState.STARTING
    assert job_dir.read_events() == [{"event": "started"}]
