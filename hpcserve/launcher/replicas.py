"""An array of servers (`submit --replicas`): what its tasks are doing, and the array as a whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from hpcserve.errors import LauncherError
from hpcserve.launcher.base import JobState
from hpcserve.launcher.resolve import JobRef, tasks_of
from hpcserve.launcher.status import JobStatus

#: From the least to the most that can be said of tasks together: the first one present counts.
_ORDER = (
    JobState.READY,
    JobState.DRAINING,
    JobState.RUNNING,
    JobState.LOADING,
    JobState.STARTING,
    JobState.PENDING,
    JobState.UNKNOWN,
    JobState.DEAD,
    JobState.FINISHED,
)


def servers_of(ref: JobRef) -> list[JobRef]:
    """The tasks of an array of servers, or the job itself where it is none.

    The tasks of a batch run are workers of one job, whose state is that of the run.
    """
    if ref.job_dir.read_job().get("kind") == "batch":
        return [ref]
    return tasks_of(ref) or [ref]


def single(ref: JobRef) -> JobRef:
    """Raises LauncherError, with the tasks' names, for an array: each has its own address."""
    tasks = [one.job_id for one in servers_of(ref)]
    if tasks != [ref.job_id]:
        raise LauncherError(
            f"job {ref.job_id} is an array of {len(tasks)} servers; name one of them: "
            f"{', '.join(tasks[:10])}{', ...' if len(tasks) > 10 else ''} "
            f"(`hpcserve route {ref.job_id}` gives one address in front of all)"
        )
    return ref


def together(ref: JobRef, tasks: Sequence[JobStatus]) -> JobStatus:
    """The array as one: it answers as soon as one of its servers does."""
    first = next(one for state in _ORDER for one in tasks if one.state is state)
    ready = sum(one.state is JobState.READY for one in tasks)
    return dataclasses.replace(
        first,
        job_id=ref.job_id,
        cause=first.cause if first.state.over else None,
        message=f"{ready} of {len(tasks)} servers are ready",
        url=None,
        nodes=list(dict.fromkeys(node for one in tasks for node in one.nodes)),
        restart_count=max(one.restart_count for one in tasks),
        run_dir=str(ref.job_dir.path),
    )
