"""The supervisor over a stand-in for its nodes: when it drains, how it ends, what goes on."""

from __future__ import annotations

import signal
import time

import pytest

from hpcserve.launcher import cause
from hpcserve.launcher.base import JobEnvironment
from hpcserve.launcher.deadline import Deadline
from hpcserve.launcher.files import read_json, write_json
from hpcserve.launcher.followup import FollowUp
from hpcserve.launcher.job_dir import JobDir
from hpcserve.launcher.signals import SignalInbox
from hpcserve.launcher.supervisor import INCOMPLETE, Supervisor, SupervisorOptions

HERE = JobEnvironment("7", 0, 2, ("n1", "n2"), "n1")


class Nodes:
    """Ends with `code` once `ends()`; else by SIGKILL alone, or with SIGTERM where it is polite."""

    def __init__(self, ends, code=0, polite=True):
        self._ends, self._code, self._polite = ends, code, polite
        self.got = []

    def __call__(self, command):
        return self

    def poll(self):
        if self.got and (self._polite or signal.SIGKILL in self.got):
            return -int(self.got[-1])
        return self._code if self._ends() else None

    def send(self, number):
        self.got.append(number)


class Next(FollowUp):
    def __init__(self):
        self.excluded = None

    def go_on(self, exclude):
        self.excluded = list(exclude)
        return "went on"


class Inbox(SignalInbox):
    def __init__(self):
        super().__init__(caught=())

    def give(self, *numbers):
        self._received.extend(numbers)

    def ignore(self):
        return


class Run:
    """One supervisor in a folder of its own; `run` runs it to its end."""

    def __init__(self, folder, left_s=None, **options):
        self.job_dir = JobDir.create(folder)
        self.inbox, self.next = Inbox(), Next()
        self.end = None if left_s is None else time.time() + left_s
        self.options = SupervisorOptions(**{"drain_s": 5.0, "kill_wait_s": 1.0, **options})

    def drains(self):
        return self.job_dir.control.exists()

    def run(self, nodes):
        self.code = Supervisor(
            job_dir=self.job_dir,
            environment=HERE,
            command=["srun"],
            options=self.options,
            inbox=self.inbox,
            deadline=Deadline(lambda: self.end),
            followup=self.next,
            start_child=nodes,
            rows_done=lambda: 0,
        ).run()
        self.said = read_json(self.job_dir.state)
        return self.said["state"], (self.said.get("cause") or {}).get("kind")


@pytest.fixture
def make(tmp_path):
    return lambda **options: Run(tmp_path / "run", **options)


def after(seconds):
    begun = time.monotonic()
    return lambda: time.monotonic() - begun > seconds


def test_servers_are_told_the_end_and_who_ends_in_order_is_finished(make):
    job = make(left_s=1000)
    assert job.run(Nodes(after(0.4))) == ("finished", None)
    told = read_json(job.job_dir.deadline)
    assert told == {"end_time": job.end, "finish_by": pytest.approx(job.end - 15, abs=0.1)}
    assert not job.drains()


def test_the_end_of_the_time_limit_begins_a_drain(make):
    job = make(left_s=19)  # drain and margin are 20 s
    assert job.run(Nodes(job.drains)) == ("dead", cause.TIME_LIMIT)
    assert 1 <= read_json(job.job_dir.control)["drain_s"] <= 4
    assert job.said["cause"]["detail"].startswith("SLURM ends the job in 1")


def test_nodes_that_do_not_drain_are_killed(make):
    job = make(drain_s=0.3)
    job.inbox.give(signal.SIGUSR1, signal.SIGUSR1)
    nodes = Nodes(lambda: False, polite=False)
    assert job.run(nodes) == ("dead", cause.TIME_LIMIT)
    assert nodes.got[:2] == [signal.SIGTERM, signal.SIGKILL]
    assert job.code == 1


def test_a_cancelled_server_that_ends_in_order_is_finished(make):
    job = make()
    job.inbox.give(signal.SIGTERM)
    assert job.run(Nodes(job.drains)) == ("finished", cause.CANCELLED)
    assert job.said["message"] == ""


def test_a_batch_run_that_stopped_early_goes_on(make):
    job = make(kind="batch", continue_with="requeue")
    assert job.run(Nodes(after(0.1), INCOMPLETE)) == ("pending", cause.TIME_LIMIT)
    assert (job.code, job.next.excluded) == (INCOMPLETE, [])
    assert [one["event"] for one in job.job_dir.read_events()][-1] == "continues"


def test_without_progress_nothing_goes_on(make):
    job = make(continue_with="requeue")
    job.inbox.give(signal.SIGUSR1)
    assert job.run(Nodes(job.drains, 1)) == ("dead", cause.TIME_LIMIT)
    assert job.next.excluded is None
    assert "no progress" in job.said["message"]


def test_a_silent_node_is_named_and_left_out(make):
    job = make(continue_with="requeue", rank_timeout_s=0.4)
    beat = {"beat": 1, "incarnation": "7.0", "phase": "running"}
    write_json(job.job_dir.node(1), {**beat, "host": "n2"})
    assert job.run(Nodes(lambda: False)) == ("pending", cause.NODE_FAILURE)
    assert job.next.excluded == ["n2"]
    assert "n2 (rank 1" in job.said["cause"]["detail"]


def test_a_server_that_never_comes_up_ends(make):
    job = make(ready_timeout_s=0.3)
    assert job.run(Nodes(lambda: False)) == ("dead", cause.CRASHED)
    assert "not ready after 0 s (--ready-timeout); ranks never seen: [0, 1]" in str(job.said)


def test_the_last_error_line_of_a_rank_is_the_cause(make):
    job = make()
    job.job_dir.rank_log(1).write_text("error: of an earlier run\n")

    def ends():
        with job.job_dir.rank_log(1).open("a") as log:
            log.write("error: shard 3 is corrupt\n")
        return True

    assert job.run(Nodes(ends, 2)) == ("dead", cause.CRASHED)
    assert job.said["cause"]["detail"] == "shard 3 is corrupt"
    assert job.code == 2


def test_a_follow_up_job_finds_the_work_done(make):
    job = make()
    write_json(job.job_dir.state, {"state": "finished", "incarnation": "6.0"})
    job.run(Nodes(lambda: pytest.fail("nothing is to be started")))
    assert (job.code, job.said["incarnation"]) == (0, "6.0")
