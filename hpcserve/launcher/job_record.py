"""The supervisor's word for others: state, address, end and events, in the run directory."""

from __future__ import annotations

import time
from collections.abc import Callable

from hpcserve.errors import OutputError
from hpcserve.launcher.base import JobEnvironment, JobState
from hpcserve.launcher.cause import Cause
from hpcserve.launcher.files import read_json, write_beat, write_json
from hpcserve.launcher.job_dir import JobDir
from hpcserve.launcher.readiness import Server
from hpcserve.log import get_logger

log = get_logger(__name__)

HEARTBEAT_S = 5.0


class JobRecord:
    """A full disk makes what it writes old, and ends nothing.

    restarts: of the job so far.
    """

    def __init__(self, job_dir: JobDir, environment: JobEnvironment, kind: str) -> None:
        self._job_dir = job_dir
        self._environment = environment
        self._kind = kind
        self._next_beat = 0.0
        self._server: tuple[Server, float] | None = None
        self._end_time_s: float | None = None
        self._content: dict[str, object] = {}
        self.restarts = 0
        self.state = JobState.STARTING

    def begin(self) -> None:
        """Take away what a former run of the job said, and say that this one has started."""
        old = (self._job_dir.control, self._job_dir.rendezvous, self._job_dir.server)
        for path in (*old, self._job_dir.endpoint, self._job_dir.deadline):
            path.unlink(missing_ok=True)
        self.restarts = self.runs()
        self.event(
            event="started",
            job_id=self._environment.job_id,
            incarnation=self._environment.incarnation,
        )
        self.publish(JobState.STARTING)

    def runs(self) -> int:
        """How often the job has started, this time not counted before `begin`."""
        return sum(one.get("event") == "started" for one in self._job_dir.read_events())

    def is_superseded(self) -> bool:
        """Whether state.json is the word of a later run; looked at before each heartbeat."""
        if time.monotonic() < self._next_beat:
            return False
        said = read_json(self._job_dir.state) or {}
        others = said.get("incarnation") != self._environment.incarnation
        return others and int(said.get("restart_count", 0)) > self.restarts

    def publish(
        self,
        state: JobState,
        *,
        cause: Cause | None = None,
        exit_code: int | None = None,
        message: str = "",
    ) -> None:
        """A new state. cause: of a drain or an end."""
        self.state = state
        told = {
            "state": state.value,
            "incarnation": self._environment.incarnation,
            "cause": None if cause is None else {"kind": cause.kind, "detail": cause.detail},
            "exit_code": exit_code,
            "message": message,
        }
        self._content = {
            **told,
            "kind": self._kind,
            "job_id": self._environment.job_id,
            "restart_count": self.restarts,
            "host": self._environment.node_name,
            "nodes": list(self._environment.hosts),
        }
        self._write()
        self.event(event="state", **told)

    def beat(self) -> None:
        """Say again that all is as it was, where it is time to."""
        if time.monotonic() >= self._next_beat:
            self._write()

    def ready(self, server: Server) -> None:
        """From now on endpoint.json says where it answers."""
        self._server = (server, time.time())
        self.publish(JobState.READY)

    def ends(self, end_time_s: float | None, finish_by_s: float) -> None:
        """When SLURM will end the job, and by when the last answer must be out; servers read it."""
        if end_time_s == self._end_time_s:
            return
        self._end_time_s = end_time_s
        if end_time_s is None:
            self._job_dir.deadline.unlink(missing_ok=True)
        else:
            content = {"end_time": end_time_s, "finish_by": finish_by_s}
            self._safely(lambda: write_json(self._job_dir.deadline, content))

    def event(self, **content: object) -> None:
        self._safely(lambda: self._job_dir.record(**content))

    def _write(self) -> None:
        self._next_beat = time.monotonic() + HEARTBEAT_S
        content = {**self._content, "heartbeat_at": time.time(), "end_time": self._end_time_s}
        # The address first: who reads "ready" looks for it at once.
        self._safely(self._write_endpoint)
        self._safely(lambda: write_beat(self._job_dir.state, content))

    def _write_endpoint(self) -> None:
        if self._server is None:
            return
        server, ready_at = self._server
        write_json(
            self._job_dir.endpoint,
            {
                "url": f"{server.url}/v1",
                "host": self._environment.hosts[0],
                "address": server.host,
                "port": server.port,
                "api_key_file": str(self._job_dir.api_key) if server.api_key else None,
                "job_id": self._environment.job_id,
                "restart_count": self.restarts,
                "state": self.state.value,
                "ready_at": ready_at,
                "heartbeat_at": time.time(),
            },
        )

    def _safely(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OutputError as error:
            log.warning("%s; going on without", error)
