"""`hpcserve cancel`: end jobs, and those that would go on after them."""

from __future__ import annotations

import click


@click.command()
@click.argument("jobs", metavar="JOB...", nargs=-1, required=True)
def command(jobs: tuple[str, ...]) -> None:
    """End each JOB (id, name, array task or run directory) in order: it drains first."""
    from hpcserve.launcher.cancel import cancel
    from hpcserve.launcher.resolve import find

    for ref in [find(job) for job in jobs]:
        cancelled = cancel(ref)
        for job_id in cancelled:
            click.echo(f"cancelled {job_id}")
        if not cancelled:
            click.echo(f"job {ref.job_id} is over already", err=True)
