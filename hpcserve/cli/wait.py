"""`hpcserve wait`: until a server answers, or a batch run is done."""

from __future__ import annotations

import time

import click

#: How often state is looked at; SLURM itself is asked more rarely.
POLL_S = 0.5
ASK_SLURM_S = 5.0


@click.command()
@click.argument("job")
@click.option("--timeout", type=float, help="seconds to wait at most; exit code 124 after them")
@click.option("-q", "--quiet", is_flag=True, help="print nothing but errors")
def command(job: str, timeout: float | None, quiet: bool) -> None:
    """Wait until JOB is ready (a server) or finished (a batch run).

    Fails at once when the job is dead, and says why.
    """
    from hpcserve.errors import JobFailedError, JobTimeoutError
    from hpcserve.launcher.base import JobState
    from hpcserve.launcher.files import read_json
    from hpcserve.launcher.resolve import find
    from hpcserve.launcher.status import status

    ref = find(job)
    deadline = None if timeout is None else time.monotonic() + timeout
    shown = None
    while True:
        one = status(ref, thorough=True)
        if one.state is not shown and not quiet:
            click.echo(f"{one.job_id}: {one.state.value}", err=True)
            shown = one.state
        if one.state is JobState.DEAD:
            raise JobFailedError(
                f"job {one.job_id} is dead: {one.cause}; see `hpcserve logs {job}`"
            )
        if one.state is JobState.FINISHED or (one.kind == "serve" and one.state is JobState.READY):
            if not quiet:
                click.echo(one.url or one.state.value)
            return
        next_ask = time.monotonic() + ASK_SLURM_S
        before = read_json(ref.job_dir.state)
        while time.monotonic() < next_ask and _same(read_json(ref.job_dir.state), before):
            if deadline is not None and time.monotonic() > deadline:
                raise JobTimeoutError(
                    f"job {one.job_id} is {one.state.value}, not ready, after {timeout:g} s"
                )
            time.sleep(POLL_S)


def _same(now: dict[str, object] | None, before: dict[str, object] | None) -> bool:
    keys = ("state", "incarnation")
    return [(now or {}).get(key) for key in keys] == [(before or {}).get(key) for key in keys]
