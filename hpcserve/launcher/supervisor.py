"""The batch process of a job: starts the nodes, watches them, drains in time, says why it ended.

It runs on the head node, outside of any container, and holds no state that a SIGKILL could lose:
everything that others rely on is in the run directory.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hpcserve.errors import OutputError, SlurmError
from hpcserve.launcher import cause as causes
from hpcserve.launcher import readiness
from hpcserve.launcher.base import JobEnvironment, JobState
from hpcserve.launcher.cause import Cause
from hpcserve.launcher.child import Child
from hpcserve.launcher.continuation import Decision, decide
from hpcserve.launcher.deadline import Deadline
from hpcserve.launcher.files import read_json, write_beat, write_json
from hpcserve.launcher.followup import FollowUp
from hpcserve.launcher.job_dir import JobDir
from hpcserve.launcher.liveness import Liveness
from hpcserve.launcher.signals import STOP, SignalInbox
from hpcserve.log import get_logger

log = get_logger(__name__)

HEARTBEAT_S = 5.0
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

    state: JobState = field(default=JobState.STARTING, init=False)
    _cause: Cause | None = field(default=None, init=False)
    _exclude: list[str] = field(default_factory=list, init=False)
    _drain_ends: float | None = field(default=None, init=False)
    _ready_since: float | None = field(default=None, init=False)
    _next_beat: float = field(default=0.0, init=False)
    _next_probe: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        env = self.environment
        self._liveness = Liveness(
            self.job_dir, env.incarnation, env.num_nodes, self.options.rank_timeout_s
        )
        self._started = time.monotonic()
        self._restarts = 0
        self._rows_before = 0
        self._log_starts: dict[Path, int] = {}

    # ------------------------------------------------------------ life

    def run(self) -> int:
        before = read_json(self.job_dir.state) or {}
        if self._nothing_left(before):
            log.info("the work of %s is done already (%s)", self.job_dir.path, before["state"])
            return 0
        self._restarts = sum(e.get("event") == "started" for e in self.job_dir.read_events())
        self._rows_before = self.rows_done()
        self._clear_former_run()
        self._log_starts = {path: _size(path) for path in self._logs()}
        self.job_dir.record(
            event="started",
            job_id=self.environment.job_id,
            incarnation=self.environment.incarnation,
        )
        self._publish_state(JobState.STARTING)
        self.followup.prepare()
        child = self.start_child(self.command)
        code = self._watch(child)
        return self._finish(code)

    def _nothing_left(self, before: dict[str, object]) -> bool:
        """A follow-up job may find that the one before it finished, or was cancelled."""
        ended = before.get("state") in (JobState.FINISHED, JobState.DEAD)
        return ended and before.get("incarnation") != self.environment.incarnation

    def _clear_former_run(self) -> None:
        old = (self.job_dir.control, self.job_dir.rendezvous, self.job_dir.server)
        for path in (*old, self.job_dir.endpoint):
            path.unlink(missing_ok=True)

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
            self._check_ranks(child)
            self._check_ready(child)
            self._check_drain(child)
            self._beat()

    def _on_signal(self, number: signal.Signals) -> None:
        if number in STOP:
            left = self.options.kill_wait_s - 3.0
            self._begin_drain(
                self._cause or self._why_stopped(number), min(left, self.options.drain_s)
            )
        else:
            warned = f"{number.name}, the early warning"
            self._begin_drain(Cause(causes.TIME_LIMIT, warned), self.options.drain_s)

    def _why_stopped(self, number: signal.Signals) -> Cause:
        """SLURM sends the same signal for everything; its log line and the clock tell which."""
        time.sleep(0.2)  # slurmstepd writes its line about the same moment
        log_file = self.job_dir.job_log
        for line in reversed(causes.tail(log_file, self._log_starts.get(log_file, 0))[-20:]):
            found = causes.from_logs([line])
            if found.kind in (causes.TIME_LIMIT, causes.PREEMPTED, causes.NODE_FAILURE):
                return found
        if self.deadline.seconds_left() < MARGIN_S:
            return Cause(causes.TIME_LIMIT, "SLURM's time limit was reached")
        return Cause(causes.CANCELLED, f"{number.name}, by scancel or an administrator")

    # ------------------------------------------------------------ checks

    def _check_deadline(self) -> None:
        self.deadline.refresh()
        left = self.deadline.seconds_left()
        if self._drain_ends is None and left < self.options.drain_s + MARGIN_S:
            self._begin_drain(
                Cause(causes.TIME_LIMIT, f"SLURM ends the job in {left:.0f} s"),
                max(1.0, min(self.options.drain_s, left - MARGIN_S)),
            )

    def _check_ranks(self, child: Child) -> None:
        lost = self._liveness.lost()
        if not lost or self._drain_ends is not None:
            return
        names = ", ".join(
            f"node {host} (rank {rank}, silent for {s:.0f} s)" for rank, host, s in lost
        )
        self._cause = Cause(causes.NODE_FAILURE, f"no sign of life from {names}")
        self._exclude = [self.environment.hosts[rank] for rank, _, _ in lost if rank]
        log.error("%s", self._cause)
        self._drain_ends = time.monotonic()

    def _check_ready(self, child: Child) -> None:
        if self._ready_since is not None or self._drain_ends is not None:
            return
        if self._liveness.all_alive() and self.state is JobState.STARTING:
            self._publish_state(JobState.LOADING)
        now = time.monotonic()
        if self.options.kind != "serve" or now < self._next_probe:
            return
        if now - self._started > self.options.ready_timeout_s:
            silent = self._liveness.missing()
            detail = f"not ready after {self.options.ready_timeout_s:.0f} s (--ready-timeout)"
            detail += f"; ranks never seen: {silent}" if silent else ""
            self._cause = Cause(causes.CRASHED, detail)
            self._drain_ends = now
            return
        self._next_probe = now + 1.0
        server = self._server()
        if server is None or not self._liveness.all_alive() or not readiness.is_healthy(server):
            return
        problem = readiness.makes_tokens(server)
        if problem:
            log.warning("the server is up, but makes no token yet: %s", problem)
            return
        self._ready_since = now
        self._publish_state(JobState.READY)
        log.info("ready at %s after %.1f s", server.url, now - self._started)

    def _server(self) -> readiness.Server | None:
        where = read_json(self.job_dir.server)
        if where is None or where.get("incarnation") != self.environment.incarnation:
            return None
        key_file = self.job_dir.api_key
        key = key_file.read_text(encoding="utf-8").strip() if key_file.is_file() else None
        return readiness.Server(where["address"], where["port"], key)

    def _begin_drain(self, why: Cause, seconds: float) -> None:
        """Ask the nodes to finish; a second signal changes nothing but a nearer end."""
        ends = time.monotonic() + seconds
        if self._drain_ends is not None:
            self._drain_ends = min(self._drain_ends, ends)
            return
        self._cause, self._drain_ends = why, ends
        log.info("draining for at most %.0f s: %s", seconds, why)
        self._safely(
            lambda: write_json(
                self.job_dir.control,
                {
                    "drain": True,
                    "drain_s": seconds,
                    "why": str(why),
                    "incarnation": self.environment.incarnation,
                },
            )
        )
        self._publish_state(JobState.DRAINING)

    def _check_drain(self, child: Child) -> None:
        if self._drain_ends is None or time.monotonic() < self._drain_ends:
            return
        log.info("ending the nodes")
        child.send(signal.SIGTERM)
        give_up = time.monotonic() + min(10.0, self.options.kill_wait_s)
        while child.poll() is None and time.monotonic() < give_up:
            time.sleep(0.05)
        child.send(signal.SIGKILL)
        self._drain_ends = time.monotonic() + 1.0

    # ------------------------------------------------------------ end

    def _finish(self, code: int) -> int:
        for number in self.inbox.take():  # one that came with the end of the child
            if number in STOP:
                self._cause = self._cause or self._why_stopped(number)
        if self._completed(code):
            self.followup.drop()
            self._publish_state(JobState.FINISHED, exit_code=code)
            return code
        why = self._cause or self._classify(code)
        decision = decide(
            self.options.continue_with,
            why.kind,
            restarts=self._restarts,
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
        self._publish_state(state, cause=why, exit_code=code, message=decision.reason)
        return code if code > 0 else 1 if code else 0

    def _completed(self, code: int) -> bool:
        if self.options.kind == "batch":
            return code in (0, FAILED_ROWS)
        return code == 0 and self._cause is None

    def _go_on(self, why: Cause, decision: Decision) -> bool:
        # Written first: a requeue ends this process at once. The signals that come with it must
        # not stop the commands that see to what comes after.
        self.inbox.ignore()
        self._publish_state(JobState.PENDING, cause=why, message=decision.reason)
        try:
            done = self.followup.go_on(self._exclude)
        except SlurmError as error:
            log.error("cannot go on: %s", error)
            return False
        self.job_dir.record(event="continues", how=done, cause=str(why))
        log.info("%s", done)
        return True

    def _made_progress(self, code: int) -> bool:
        if self.options.kind == "serve":
            return self._ready_since is not None
        # Exit 75 is a batch run's word that running it again goes on from where it was. One that
        # was killed, or lost a node, gives no word, but keeps its rows.
        return code == INCOMPLETE or self.rows_done() > self._rows_before

    def _classify(self, code: int) -> Cause:
        if self.options.kind == "batch" and code == INCOMPLETE:
            return Cause(causes.TIME_LIMIT, "the run stopped in time")
        starts = self._log_starts
        lines = [line for path in self._logs() for line in causes.tail(path, starts.get(path, 0))]
        return causes.from_logs(lines, code)

    def _logs(self) -> list[Path]:
        """The batch script's own log, then each rank's: the last error line is an engine's."""
        ranks = range(self.environment.num_nodes)
        return [self.job_dir.job_log, *(self.job_dir.rank_log(rank) for rank in ranks)]

    # ------------------------------------------------------------ words for others

    def _beat(self) -> None:
        if time.monotonic() >= self._next_beat:
            self._publish_state(self.state, event=False)

    def _publish_state(
        self,
        state: JobState,
        *,
        cause: Cause | None = None,
        exit_code: int | None = None,
        message: str = "",
        event: bool = True,
    ) -> None:
        """Write state.json and endpoint.json; a full disk must not end a server that works."""
        changed = event and (state is not self.state or state is JobState.STARTING)
        self.state = state
        self._next_beat = time.monotonic() + HEARTBEAT_S
        why = cause or (self._cause if state is JobState.DRAINING else None)
        content = {
            "state": state.value,
            "kind": self.options.kind,
            "job_id": self.environment.job_id,
            "incarnation": self.environment.incarnation,
            "restart_count": self._restarts,
            "host": self.environment.node_name,
            "nodes": list(self.environment.hosts),
            "heartbeat_at": time.time(),
            "end_time": self.deadline.end_time_s,
            "cause": None if why is None else {"kind": why.kind, "detail": why.detail},
            "exit_code": exit_code,
            "message": message,
        }
        self._safely(lambda: write_beat(self.job_dir.state, content))
        self._safely(self._publish_endpoint)
        if changed:
            told = {
                k: content[k] for k in ("state", "incarnation", "cause", "exit_code", "message")
            }
            self._safely(lambda: self.job_dir.record(event="state", **told))

    def _publish_endpoint(self) -> None:
        server = self._server()
        if server is None or self._ready_since is None:
            return
        write_json(
            self.job_dir.endpoint,
            {
                "url": f"{server.url}/v1",
                "host": self.environment.hosts[0],
                "address": server.host,
                "port": server.port,
                "api_key_file": str(self.job_dir.api_key) if server.api_key else None,
                "job_id": self.environment.job_id,
                "restart_count": self._restarts,
                "state": self.state.value,
                "ready_at": time.time() - (time.monotonic() - self._ready_since),
                "heartbeat_at": time.time(),
            },
        )

    def _safely(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OutputError as error:
            log.warning("%s; going on without", error)


def _size(path: Path) -> int:
    """Bytes in `path` now: what an earlier run of the job wrote."""
    return path.stat().st_size if path.is_file() else 0
