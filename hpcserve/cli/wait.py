"""`hpcserve wait`: until a server answers, or a batch run is done."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from hpcserve.launcher.base import JobState
    from hpcserve.launcher.resolve import JobRef
    from hpcserve.launcher.status import JobStatus

#: How often state is looked at; SLURM itself is asked more rarely.
POLL_S = 0.5
ASK_SLURM_S = 5.0


@click.command()
@click.argument("job")
@click.option("--timeout", type=float, help="seconds to wait at most; exit code 124 after them")
@click.option("-q", "--quiet", is_flag=True, help="print nothing but errors")
def command(job: str, timeout: float | None, quiet: bool) -> None:
    """Wait until JOB is ready (a server; an array: all of its servers) or finished (a batch run).

    Fails at once when the job is dead, and says why.
    """
    from hpcserve.errors import JobTimeoutError
    from hpcserve.launcher.replicas import servers_of
    from hpcserve.launcher.resolve import find
    from hpcserve.launcher.status import statuses

    refs = servers_of(find(job))
    deadline = None if timeout is None else time.monotonic() + timeout
    shown: dict[str, JobState] = {}
    while True:
        now = statuses(refs, thorough=True)
        for one in now:
            _refuse_dead(one, job)
            if shown.get(one.job_id) is not one.state and not quiet:
                click.echo(f"{one.job_id}: {one.state.value}", err=True)
            shown[one.job_id] = one.state
        waiting = [one for one in now if not _arrived(one)]
        if not waiting:
            for one in now if not quiet else []:
                click.echo(one.url or one.state.value)
            return
        next_ask = time.monotonic() + ASK_SLURM_S
        before = _words(refs)
        while time.monotonic() < next_ask and _words(refs) == before:
            if deadline is not None and time.monotonic() > deadline:
                one = waiting[0]
                raise JobTimeoutError(
                    f"job {one.job_id} is {one.state.value}, not ready, after {timeout:g} s"
                )
            time.sleep(POLL_S)


def _refuse_dead(one: JobStatus, job: str) -> None:
    """Raises JobFailedError."""
    from hpcserve.errors import JobFailedError
    from hpcserve.launcher.base import JobState

    if one.state is JobState.DEAD:
        raise JobFailedError(f"job {one.job_id} is dead: {one.cause}; see `hpcserve logs {job}`")


def _arrived(one: JobStatus) -> bool:
    from hpcserve.launcher.base import JobState

    return one.state is JobState.FINISHED or (one.kind == "serve" and one.state is JobState.READY)


def _words(refs: list[JobRef]) -> list[tuple[object, object]]:
    """What the supervisors say now, as far as it matters here."""
    from hpcserve.launcher.files import read_json

    said = [read_json(ref.job_dir.state) or {} for ref in refs]
    return [(one.get("state"), one.get("incarnation")) for one in said]
