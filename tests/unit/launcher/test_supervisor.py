"""The supervisor over a stand-in for its nodes: when it drains, how it ends, what goes on."""

from __future__ import annotations

import signal
import time

import pytest

from hpcserve.errors import LauncherError
from hpcserve.launcher import cause, job_record
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
        self.asked = []

    def prepare(self):
        self.asked.append("prepare")

    def drop(self):
        self.asked.append("drop")

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

    def run(self, nodes, read_end=None):
        self.code = Supervisor(
            job_dir=self.job_dir,
            environment=HERE,
            command=["srun"],
            options=self.options,
            inbox=self.inbox,
            deadline=Deadline(read_end or (lambda: self.end)),
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
    assert job.run(Nodes(job.job_dir.deadline.exists)) == ("finished", None)
    told = read_json(job.job_dir.deadline)
    assert told == {"end_time": job.end, "finish_by": pytest.approx(job.end - 15, abs=0.1)}
    assert not job.drains()


def test_the_end_of_the_time_limit_begins_a_drain(make):
    job = make(left_s=19)  # drain and margin are 20 s
    assert job.run(Nodes(job.drains)) == ("dead", cause.TIME_LIMIT)
    assert 1 <= read_json(job.job_dir.control)["drain_s"] <= 4
    assert job.said["cause"]["detail"].startswith("SLURM ends the job in ")


def test_an_end_that_slurm_has_moved_is_read_again_before_the_drain(make):
    """As after a suspension: the end that was read before it lies in the past by then."""
    job = make()
    ends = iter([time.time() - 3600])
    looks = iter(range(4))
    nodes = Nodes(lambda: next(looks, None) is None)
    assert job.run(nodes, lambda: next(ends, time.time() + 1000)) == ("finished", None)
    assert not job.drains()


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


LINE = (
    "slurmstepd-n1: error: *** JOB 7 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO JOB REQUEUE ***"
)


def write_log(job, text):
    with job.job_dir.job_log.open("a") as log:
        log.write(text + "\n")


def test_a_job_that_was_requeued_by_hand_waits_for_its_next_run(make):
    job = make(continue_with="chain")
    job.inbox.give(signal.SIGTERM)

    def ends():
        # SLURM's line may come long after its signal.
        if job.drains():
            write_log(job, LINE)
        return job.drains()

    assert job.run(Nodes(ends)) == ("pending", cause.REQUEUED)
    assert job.next.asked == ["prepare"]  # the follow-up waits for the next run's end
    assert job.code == INCOMPLETE


def test_nodes_that_a_requeue_ended_first_are_no_crash(make):
    job = make()

    def ends():
        write_log(job, LINE)
        return True

    assert job.run(Nodes(ends, 143)) == ("pending", cause.REQUEUED)


@pytest.mark.parametrize(
    ("said", "options", "runs"),
    [
        ({"state": "dead", "job_id": "7"}, {}, True),  # preempted, and SLURM's own requeue
        ({"state": "finished", "job_id": "7"}, {}, True),  # `scontrol requeue` of a server
        ({"state": "finished", "job_id": "7"}, {"kind": "batch"}, False),
        ({"state": "dead", "job_id": "6"}, {"continue_with": "chain"}, False),
        ({"state": "dead", "job_id": "7"}, {"continue_with": "requeue"}, True),
        ({"state": "dead", "job_id": "7"}, {"continue_with": "requeue", "max_restarts": 0}, False),
    ],
)
def test_who_runs_again_where_the_run_before_ended(make, said, options, runs):
    job = make(**options)
    job.job_dir.record(event="started")
    write_json(job.job_dir.state, {**said, "incarnation": "7.-1"})
    started = []
    job.run(Nodes(lambda: started.append(1) or True))
    assert bool(started) is runs
    if not runs:
        assert job.code == 0


@pytest.mark.parametrize(("before", "prepares"), [(1, True), (2, False)])
def test_the_last_run_leaves_no_follow_up_behind(make, before, prepares):
    """Else jobs that are killed outright, and decide nothing, would follow each other for ever."""
    job = make(continue_with="chain", max_restarts=2)
    for _ in range(before):
        job.job_dir.record(event="started")
    job.run(Nodes(lambda: True))
    assert ("prepare" in job.next.asked) is prepares


def test_a_step_that_cannot_be_started_takes_its_follow_up_along(make):
    job = make(continue_with="chain")

    def no_srun(_):
        raise LauncherError("cannot start srun: No such file or directory")

    with pytest.raises(LauncherError):
        job.run(no_srun)
    assert job.next.asked == ["prepare", "drop"]
    said = read_json(job.job_dir.state)
    assert (said["state"], said["cause"]["kind"]) == ("dead", cause.CRASHED)


def test_who_was_overtaken_by_a_later_run_is_silent(make, monkeypatch):
    monkeypatch.setattr(job_record, "HEARTBEAT_S", 0.1)
    job = make(continue_with="requeue")
    theirs = {"state": "loading", "incarnation": "7.1", "restart_count": 1, "job_id": "7"}
    nodes = Nodes(lambda: False)
    started = []

    def start(command):
        started.append(command)
        write_json(job.job_dir.state, theirs)
        return nodes

    job.run(start)
    assert (job.code, job.said) == (INCOMPLETE, theirs)
    assert nodes.got[0] == signal.SIGTERM
    assert job.next.asked == ["prepare"]  # what follows is the later run's


def test_an_earlier_runs_last_word_overtakes_nobody(make, monkeypatch):
    monkeypatch.setattr(job_record, "HEARTBEAT_S", 0.1)
    job = make()
    job.job_dir.record(event="started")
    theirs = {"state": "draining", "incarnation": "7.-1", "restart_count": 0, "job_id": "7"}
    ends = after(0.5)

    def start(_):
        write_json(job.job_dir.state, theirs)
        return Nodes(ends)

    assert job.run(start) == ("finished", None)
