"""What a job is doing: the supervisor's word, checked against its heartbeat and SLURM's.

Neither alone will do: a supervisor that was killed leaves "ready" behind, and SLURM may be away.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from hpcserve.errors import SlurmError
from hpcserve.launcher import cause as causes
from hpcserve.launcher import slurm_query
from hpcserve.launcher.base import JobState
from hpcserve.launcher.cause import Cause
from hpcserve.launcher.files import read_json
from hpcserve.launcher.local_job import controller, is_local
from hpcserve.launcher.resolve import JobRef
from hpcserve.launcher.slurm_query import SlurmJobInfo

#: A heartbeat older than this is no sign of life (clocks of nodes may differ by some seconds).
STALE_S = 60.0
#: One younger than this needs no second opinion; supervisors write every 5 s.
FRESH_S = 12.0


@dataclass(frozen=True)
class JobStatus:
    """cause: of death, "kind: detail".  slurm_state: SLURM's word; None where it gave none."""

    job_id: str
    name: str
    kind: str
    state: JobState
    cause: str | None
    message: str
    url: str | None
    nodes: list[str]
    restart_count: int
    heartbeat_age_s: float | None
    slurm_state: str | None
    slurm_reason: str | None
    end_time: float | None
    run_dir: str

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "state": self.state.value}


def statuses(refs: list[JobRef], *, thorough: bool = False) -> list[JobStatus]:
    """Every job's status, with one question to SLURM for all of them.

    SLURM is not asked about jobs whose supervisor has just spoken, unless `thorough`.
    """
    refs = [_latest(ref) for ref in refs]
    slurm_jobs = [ref for ref in refs if not is_local(ref.job_id)]
    quiet = [ref for ref in slurm_jobs if thorough or not _has_spoken(ref)]
    asked = [job_id for ref in quiet for job_id in (ref.job_id, *_later_ids(ref))]
    try:
        known: Mapping[str, SlurmJobInfo] | None = slurm_query.jobs(asked)
    except SlurmError:
        known = None
    return [_status(ref, known) for ref in refs]


def status(ref: JobRef, *, thorough: bool = False) -> JobStatus:
    return statuses([ref], thorough=thorough)[0]


def _has_spoken(ref: JobRef) -> bool:
    """Whether the supervisor's last word stands: it is recent, or it is the last."""
    said = read_json(ref.job_dir.state) or {}
    if said.get("job_id") != ref.job_id or "state" not in said:
        return False
    fresh = abs(time.time() - said["heartbeat_at"]) < FRESH_S
    return _is_over(said) or (fresh and said["state"] != JobState.PENDING)


def _status(ref: JobRef, known: Mapping[str, SlurmJobInfo] | None) -> JobStatus:
    info = _info(ref.job_id, known)
    said = read_json(ref.job_dir.state) or _said_by_workers(ref)
    if said.get("job_id", ref.job_id) != ref.job_id:
        said = {}  # the word of the job before it: this one has not started
    endpoint = read_json(ref.job_dir.endpoint) or {}
    age = time.time() - said["heartbeat_at"] if "heartbeat_at" in said else None
    state, why = _judge(ref, said, age, info, asked=known is not None)
    follower = _follower(ref, known) if state is JobState.DEAD and not _is_over(said) else None
    if follower is not None:
        ended_by = Cause(**said["cause"]) if said.get("cause") else why
        return replace(_status(follower, known), cause=str(ended_by) if ended_by else None)
    live = state in (JobState.READY, JobState.DRAINING)
    return JobStatus(
        job_id=ref.job_id,
        name=ref.name,
        kind=str(said.get("kind") or ref.job_dir.described().get("kind", "serve")),
        state=state,
        cause=None if why is None else str(why),
        message=str(said.get("message", "")),
        url=endpoint.get("url") if live else None,
        nodes=list(said.get("nodes", [])),
        restart_count=int(said.get("restart_count", 0)),
        heartbeat_age_s=None if age is None else round(age, 1),
        slurm_state=info.state if info else None,
        slurm_reason=info.reason if info else None,
        end_time=said.get("end_time") if info is None else info.end_time_s,
        run_dir=str(ref.job_dir.path),
    )


def _latest(ref: JobRef) -> JobRef:
    """The job that goes on where `ref` ended, if one has started in its run directory."""
    said = str((read_json(ref.job_dir.state) or {}).get("job_id"))
    return JobRef(said, ref.job_dir, ref.name) if said in _later_ids(ref) else ref


def _later_ids(ref: JobRef) -> list[str]:
    """Jobs that were chained after `ref`, oldest first."""
    ids = [str(one) for one in ref.job_dir.read_job().get("job_ids", [])]
    return ids[ids.index(ref.job_id) + 1 :] if ref.job_id in ids else []


def _follower(ref: JobRef, known: Mapping[str, SlurmJobInfo] | None) -> JobRef | None:
    """The job that will go on where `ref` ended, and still waits in the queue."""
    for job_id in _later_ids(ref):
        if known and job_id in known and known[job_id].active:
            return JobRef(job_id, ref.job_dir, ref.name)
    return None


def _is_over(said: Mapping[str, Any]) -> bool:
    """Whether the supervisor itself said that the job is over, rather than SLURM."""
    return "state" in said and JobState(said["state"]).over


def _said_by_workers(ref: JobRef) -> dict[str, Any]:
    """The word of a batch run's job array: a task finishes when every row is finished, whatever
    became of the others; and the array is dead when all of them are."""
    if ref.job_dir.read_job().get("kind") != "batch":
        return {}
    tasks = ref.job_dir.tasks()
    words = [word for task in tasks if (word := read_json(task.state))]
    finished = [word for word in words if word["state"] == JobState.FINISHED]
    ended = [word for word in words if JobState(word["state"]).over]
    if finished or (ended and len(ended) == len(tasks)):
        return {**(finished or ended)[0], "job_id": ref.job_id}
    return {}


def _info(job_id: str, known: Mapping[str, SlurmJobInfo] | None) -> SlurmJobInfo | None:
    """SLURM's word on a job; on an array as a whole, that of its liveliest task."""
    if known is None:
        return None
    if job_id in known:
        return known[job_id]
    tasks = [info for one, info in known.items() if one.startswith(f"{job_id}_")]
    return next((info for info in tasks if info.active), tasks[0] if tasks else None)


def _judge(
    ref: JobRef,
    said: Mapping[str, Any],
    age: float | None,
    info: SlurmJobInfo | None,
    *,
    asked: bool,
) -> tuple[JobState, Cause | None]:
    """The state, and the cause of a death."""
    state = JobState(said["state"]) if "state" in said else JobState.PENDING
    why = Cause(**said["cause"]) if said.get("cause") else None
    requeueing = "state" in said and state is JobState.PENDING and info is not None and info.active
    if state.over and info is not None and info.waiting and info.job_id == ref.job_id:
        return JobState.PENDING, why  # `scontrol requeue` by hand
    if state.over or requeueing:
        return state, why
    if is_local(ref.job_id):
        alive = controller(ref.job_id) is not None
        return (state, why) if alive else (JobState.DEAD, _post_mortem(ref, None))
    if not asked:  # SLURM does not answer: only a fresh heartbeat says anything
        fresh = age is not None and abs(age) < STALE_S
        return (state if fresh else JobState.UNKNOWN), why
    if info is None:
        fresh = age is not None and abs(age) < STALE_S
        return (state, why) if fresh else (JobState.DEAD, why or _post_mortem(ref, None))
    if info.waiting:
        return JobState.PENDING, why
    if info.active:
        return (JobState.STARTING if state is JobState.PENDING else state), why
    if info.state == "COMPLETED" and state is JobState.PENDING and why is None:
        return JobState.FINISHED, None
    return JobState.DEAD, _post_mortem(ref, info)


def _post_mortem(ref: JobRef, info: SlurmJobInfo | None) -> Cause:
    """The cause where the supervisor could not leave word of it."""
    by_slurm = causes.from_slurm(info.state, info.reason) if info else None
    if by_slurm:
        return by_slurm
    lines = causes.tail(ref.job_dir.job_log)
    for log in sorted(ref.job_dir.logs.glob("rank-*.log")):
        lines += causes.tail(log)
    return causes.from_logs(lines)
