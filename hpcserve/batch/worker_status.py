"""What each worker says of itself while it runs, in a file of its own that everyone may read."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from hpcserve.batch.durable import replace_file
from hpcserve.batch.energy import EnergyMeter
from hpcserve.batch.engine import Backend
from hpcserve.batch.lease import Owner
from hpcserve.batch.report import BatchReport
from hpcserve.batch.run_dir import RunDir
from hpcserve.log import get_logger

log = get_logger(__name__)

_MAX_POINTS = 240
#: A worker that has said nothing for so long is taken for gone.
_SILENT_S = 30.0


class WorkerStatus(msgspec.Struct, kw_only=True):
    """One process's part of a run. Times of day in seconds since the epoch.

    engine_s: that an engine was up.  joules: of its GPUs; None where nobody tells.
    series: [seconds since its start, rows, output tokens], now and then.
    """

    name: str
    host: str
    pid: int
    job_id: str
    pids: str = ""
    started_s: float
    updated_s: float
    ended: bool = False
    num_rows: int = 0
    num_failed: int = 0
    num_quarantined: int = 0
    num_retries: int = 0
    num_engine_deaths: int = 0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_cached_tokens: int = 0
    num_gpus: int = 0
    engine_s: float = 0.0
    joules: float | None = None
    unused: dict[str, int] = {}
    other_models: dict[str, int] = {}
    series: list[list[float]] = []

    @property
    def wall_s(self) -> float:
        return max(self.updated_s - self.started_s, 1e-9)

    @property
    def is_alive(self) -> bool:
        """It has not ended, and has said something lately."""
        return not self.ended and time.time() - self.updated_s < _SILENT_S


class WorkerFile:
    """Keeps this worker's file up to date. It helps people; the run does not depend on it."""

    def __init__(
        self,
        run_dir: RunDir,
        owner: Owner,
        report: BatchReport,
        energy: EnergyMeter,
        backend: Backend,
    ) -> None:
        self._path = run_dir.workers / f"{owner.name}.json"
        self._report = report
        self._energy = energy
        self._num_gpus = backend.num_gpus
        self._engine_since: float | None = None
        self._engine_s = 0.0
        self._stride = 1
        self._num_published = 0
        now = time.time()
        self._status = WorkerStatus(
            name=owner.name,
            host=owner.host,
            pid=owner.pid,
            job_id=owner.job_id,
            pids=owner.pids,
            started_s=now,
            updated_s=now,
        )

    def engine_is_up(self) -> None:
        self._engine_since = time.monotonic()

    def engine_is_down(self) -> None:
        if self._engine_since is not None:
            self._engine_s += time.monotonic() - self._engine_since
        self._engine_since = None

    def publish(self, *, ended: bool = False) -> None:
        """Write the file anew. A disk that refuses is said in the log: rows matter more."""
        self._update(ended)
        try:
            replace_file(self._path, msgspec.json.encode(self._status), durable=False)
        except OSError as error:
            log.warning("cannot write %s: %s", self._path, error.strerror)

    def _update(self, ended: bool) -> None:
        status, report = self._status, self._report
        for name in (
            *("num_rows", "num_failed", "num_quarantined", "num_retries", "num_engine_deaths"),
            *("num_prompt_tokens", "num_output_tokens", "num_cached_tokens"),
        ):
            setattr(status, name, getattr(report, name))
        status.unused, status.other_models = dict(report.unused), dict(report.other_models)
        status.updated_s = time.time()
        status.ended = ended
        up_s = 0.0 if self._engine_since is None else time.monotonic() - self._engine_since
        status.engine_s = self._engine_s + up_s
        status.num_gpus = self._num_gpus
        status.joules = self._energy.joules()
        self._add_point()

    def _add_point(self) -> None:
        """At most so many points: when there are too many, every other goes, and new ones come
        half as often."""
        if self._num_published % self._stride == 0:
            report = self._report
            self._status.series.append(
                [round(self._status.wall_s, 1), report.num_rows, report.num_output_tokens]
            )
        self._num_published += 1
        if len(self._status.series) > _MAX_POINTS:
            self._status.series = self._status.series[::2]
            self._stride *= 2


def read_all(run_dir: RunDir) -> list[WorkerStatus]:
    """Every worker there ever was, by the time of its start; files that cannot be read are left
    out: the run does not depend on them."""
    found = []
    try:
        paths = list(run_dir.workers.glob("*.json"))
    except OSError as error:
        log.debug("%s: %s", run_dir.workers, error)
        return []
    for path in paths:
        try:
            found.append(msgspec.json.decode(path.read_bytes(), type=WorkerStatus))
        except (OSError, msgspec.DecodeError):
            continue
    return sorted(found, key=lambda one: one.started_s)


def runs_without_progress(run_dir: RunDir, owner: Owner) -> int:
    """How many times, one after the other, the run was worked on in vain before this worker began.

    Workers side by side are one time: while one of them finishes rows, those that wait for an
    engine or for a shard prove nothing.
    """
    workers = read_all(run_dir)
    since = next((one.started_s for one in workers if one.name == owner.name), time.time())
    others = [one for one in workers if one.name != owner.name]

    def someone_worked() -> bool:
        return any(one.num_rows and one.updated_s > since for one in others)

    count = 0
    while not someone_worked():
        earlier = [one for one in others if one.updated_s <= since and one.started_s < since]
        if not earlier:
            break
        since = max(earlier, key=lambda one: one.updated_s).started_s
        count += not someone_worked()
    return count


def active_s(workers: Sequence[WorkerStatus]) -> float:
    """Seconds in which at least one of them ran."""
    total, until = 0.0, float("-inf")
    for one in sorted(workers, key=lambda one: one.started_s):
        start = max(one.started_s, until)
        if one.updated_s > start:
            total += one.updated_s - start
        until = max(until, one.updated_s)
    return total
