"""The batch process of a job: starts the nodes, watches them, drains in time, says why it ended.

It runs on the head node, outside of any container, and holds no state that a SIGKILL could lose:
everything that others rely on is in the run directory.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hpcserve.errors import LauncherError, SlurmError
from hpcserve.launcher import cause as causes
from hpcserve.launcher import readiness
from hpcserve.launcher.base import JobEnvironment, JobState
from hpcserve.launcher.cause import Cause
from hpcserve.launcher.child import Child
from hpcserve.launcher.continuation import Decision, decide
from hpcserve.launcher.deadline import Deadline
from hpcserve.launcher.drain import Drain
from hpcserve.launcher.files import read_json
from hpcserve.launcher.followup import FollowUp
from hpcserve.launcher.job_dir import JobDir
from hpcserve.launcher.job_record import JobRecord
from hpcserve.launcher.liveness import Liveness
from hpcserve.launcher.signals import STOP, SignalInbox
from hpcserve.launcher.witness import Witness
from hpcserve.log import get_logger

log = get_logger(__name__)

TICK_S = 0.25
#: Between the end of the drain and SLURM's own end: for requeueing and the last writes.
MARGIN_S = 15.0
#: `hpcserve batch`: some rows failed, the run is complete.
FAILED_ROWS = 3
INCOMPLETE = 75


@dataclass(frozen=True)
class SupervisorOptions:
    """kind: serve or batch.  kill_wait_s: SLURM's seconds between SIGTERM and SIGKILL."""

    kind: str = "serve"
    continue_with: str = "none"
    max_restarts: int = 3
    ready_timeout_s: float = 3600.0
    drain_s: float = 20.0
    rank_timeout_s: float = 60.0
    kill_wait_s: float = 30.0


@dataclass
class Supervisor:
    """`run()` returns the batch script's exit code.

    rows_done: rows of a batch run that are finished for good, whatever ends the run.
    """

    job_dir: JobDir
    environment: JobEnvironment
    command: Sequence[str]
    options: SupervisorOptions
    inbox: SignalInbox
    deadline: Deadline
    followup: FollowUp
    start_child: Callable[[Sequence[str]], Child] = Child
    rows_done: Callable[[], int] = lambda: 0

    _exclude: list[str] = field(default_factory=list, init=False)
    _is_ready: bool = field(default=False, init=False)
    _superseded: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        env, options = self.environment, self.options
        self._liveness = Liveness(
            self.job_dir, env.incarnation, env.num_nodes, options.rank_timeout_s
        )
        self._drain = Drain(self.job_dir, env.incarnation, options.kill_wait_s)
        self._record = JobRecord(self.job_dir, env, options.kind)
        self._probe = readiness.Probe()
        self._witness = Witness(self.job_dir, env.num_nodes)
        self._started = time.monotonic()
        self._rows_before = 0

    # ------------------------------------------------------------ life

    def run(self) -> int:
        before = read_json(self.job_dir.state) or {}
        nothing_left = self._why_nothing_is_left(before)
        if nothing_left:
            log.info("%s; ending", nothing_left)
            return 0
        self._rows_before = self.rows_done()
        self._record.begin()
        if self._record.restarts < self.options.max_restarts:  # else there is no further run
            self.followup.prepare()
        try:
            child = self.start_child(self.command)
        except LauncherError as error:
            self.followup.drop()
            cause = Cause(causes.CRASHED, str(error))
            self._record.publish(JobState.DEAD, cause=cause, exit_code=error.exit_code)
            raise
        code = self._watch(child)
        return INCOMPLETE if self._superseded else self._finish(code)

    def _why_nothing_is_left(self, before: dict[str, object]) -> str:
        """A follow-up job may find that the one before it finished, or was cancelled.

        The same job anew is something else: SLURM itself does that after preemption, and for
        `scontrol requeue`. Empty where there is work.
        """
        state, most = before.get("state"), self.options.max_restarts
        ended = state in (JobState.FINISHED, JobState.DEAD)
        if not ended or before.get("incarnation") == self.environment.incarnation:
            return ""
        anew = before.get("job_id") == self.environment.job_id
        if not anew or (self.options.kind == "batch" and state == JobState.FINISHED):
            return f"the work of {self.job_dir.path} is done already ({state})"
        if self.options.continue_with != "none" and self._record.runs() > most:
            return f"restarted {self._record.runs() - 1} times already (--max-restarts {most})"
        return ""

    def _watch(self, child: Child) -> int:
        """Until the child has ended; returns its exit code."""
        while True:
            self.inbox.wait(TICK_S)
            for number in self.inbox.take():
                self._on_signal(number)
            code = child.poll()
            if code is not None:
                return code
            self._liveness.look()
            self._check_deadline()
            if not self._drain.begun:
                self._check_ranks()
                self._check_ready()
            self._drain.enforce(child)
            self._give_way()
            if not self._superseded:
                self._record.beat()

    def _give_way(self) -> None:
        """SLURM may have lost this node from sight, and run the job anew on others: the word in
        the run directory is theirs."""
        if not self._superseded and self._record.is_superseded():
            self._superseded = True
            self._drain.at_once(Cause(causes.NODE_FAILURE, "a later run of the job has begun"))

    def _on_signal(self, number: signal.Signals) -> None:
        if number in STOP:
            left = self.options.kill_wait_s - 3.0
            why = self._drain.why or self._why_stopped(number)
            self._begin_drain(why, min(left, self.options.drain_s))
        else:
            warned = f"{number.name}, the early warning"
            self._begin_drain(Cause(causes.TIME_LIMIT, warned), self.options.drain_s)

    def _why_stopped(self, number: signal.Signals) -> Cause:
        return self._witness.of_signal(number, self.deadline.seconds_left())

    def _begin_drain(self, why: Cause, seconds: float) -> None:
        if self._drain.begin(why, seconds):
            self._record.publish(JobState.DRAINING, cause=why)

    # ------------------------------------------------------------ checks

    def _check_deadline(self) -> None:
        self.deadline.refresh()
        if not self._drain.begun and self._is_near_its_end():
            self.deadline.confirm()
        left = self.deadline.seconds_left()
        self._record.ends(self.deadline.end_time_s, time.time() + left - MARGIN_S)
        if not self._drain.begun and self._is_near_its_end():
            self._begin_drain(
                Cause(causes.TIME_LIMIT, f"SLURM ends the job in {max(left, 0.0):.0f} s"),
                max(1.0, min(self.options.drain_s, left - MARGIN_S)),
            )

    def _is_near_its_end(self) -> bool:
        return self.deadline.seconds_left() < self.options.drain_s + MARGIN_S

    def _check_ranks(self) -> None:
        lost = self._liveness.lost()
        if not lost:
            return
        names = ", ".join(
            f"node {host} (rank {rank}, silent for {s:.0f} s)" for rank, host, s in lost
        )
        self._exclude = [self.environment.hosts[rank] for rank, _, _ in lost if rank]
        self._drain.at_once(Cause(causes.NODE_FAILURE, f"no sign of life from {names}"))

    def _check_ready(self) -> None:
        if self._is_ready or self._drain.begun:
            return
        serves = self.options.kind == "serve"
        if self._liveness.all_alive() and self._record.state is JobState.STARTING:
            self._record.publish(JobState.LOADING if serves else JobState.RUNNING)
        if not serves:
            return
        if time.monotonic() - self._started > self.options.ready_timeout_s:
            self._drain.at_once(Cause(causes.CRASHED, self._why_not_ready()))
            return
        server = self._server()
        if server is None or not self._liveness.all_alive():
            return
        if self._probe.is_ready(server):
            self._is_ready = True
            self._record.ready(server)
            log.info("ready at %s after %.1f s", server.url, time.monotonic() - self._started)

    def _why_not_ready(self) -> str:
        silent = self._liveness.missing()
        detail = f"not ready after {self.options.ready_timeout_s:.0f} s (--ready-timeout)"
        return f"{detail}; ranks never seen: {silent}" if silent else detail

    def _server(self) -> readiness.Server | None:
        where = read_json(self.job_dir.server)
        if where is None or where.get("incarnation") != self.environment.incarnation:
            return None
        key_file = self.job_dir.api_key
        key = key_file.read_text(encoding="utf-8").strip() if key_file.is_file() else None
        return readiness.Server(where["address"], where["port"], key)

    # ------------------------------------------------------------ end

    def _finish(self, code: int) -> int:
        why = self._drain.why
        for number in self.inbox.take():  # one that came with the end of the child
            if number in STOP:
                why = why or self._why_stopped(number)
        if why is not None and why.kind == causes.CANCELLED:
            why = self._witness.of_slurm() or why  # its line may come later than its signal
        if self._completed(code, why):
            self.followup.drop()
            self._record.publish(JobState.FINISHED, exit_code=code)
            return code
        why = why or self._why_ended(code)
        if why.kind == causes.REQUEUED:
            self._record.publish(JobState.PENDING, cause=why, message="SLURM runs it again")
            return INCOMPLETE
        decision = decide(
            self.options.continue_with,
            why.kind,
            restarts=self._record.restarts,
            max_restarts=self.options.max_restarts,
            progress=self._made_progress(code),
        )
        log.info("%s; %s", why, decision.reason)
        if decision.go_on and self._go_on(why, decision):
            return INCOMPLETE
        self.followup.drop()
        # A server that was told to end and did so in order has not died of it.
        orderly = why.kind == causes.CANCELLED
        state = JobState.FINISHED if orderly and code == 0 else JobState.DEAD
        # Where nobody asked for another run there is nothing to explain.
        message = decision.reason if self.options.continue_with != "none" else ""
        self._record.publish(state, cause=why, exit_code=code, message=message)
        return code if code > 0 else 1 if code else 0

    def _completed(self, code: int, why: Cause | None) -> bool:
        if self.options.kind == "batch":
            return code in (0, FAILED_ROWS)
        return code == 0 and why is None

    def _why_ended(self, code: int) -> Cause:
        if self.options.kind == "batch" and code == INCOMPLETE:
            return Cause(causes.TIME_LIMIT, "the run stopped in time")
        return self._witness.of_slurm() or self._witness.of_end(code)

    def _go_on(self, why: Cause, decision: Decision) -> bool:
        # Written first: a requeue ends this process at once. The signals that come with it must
        # not stop the commands that see to what comes after.
        self.inbox.ignore()
        self._record.publish(JobState.PENDING, cause=why, message=decision.reason)
        try:
            done = self.followup.go_on(self._exclude)
        except SlurmError as error:
            log.error("cannot go on: %s", error)
            return False
        self._record.event(event="continues", how=done, cause=str(why))
        log.info("%s", done)
        return True

    def _made_progress(self, code: int) -> bool:
        if self.options.kind == "serve":
            return self._is_ready
        # Exit 75 is a batch run's word that running it again goes on from where it was. One that
        # was killed, or lost a node, gives no word, but keeps its rows.
        return code == INCOMPLETE or self.rows_done() > self._rows_before
