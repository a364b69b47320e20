"""`hpcserve ps`: the jobs that were submitted from here."""

from __future__ import annotations

import click

from hpcserve.cli._jobs import print_json, print_table


@click.command()
@click.option("-a", "--all", "show_all", is_flag=True, help="also jobs that are over")
@click.option("--json", "as_json", is_flag=True, help="as JSON")
def command(show_all: bool, as_json: bool) -> None:
    """List jobs: what they are doing, and where they answer."""
    from hpcserve.launcher.job_dir import registered
    from hpcserve.launcher.resolve import JobRef, tasks_of
    from hpcserve.launcher.status import statuses

    refs = []
    for job_id, job_dir in registered().items():
        ref = JobRef(job_id, job_dir, str(job_dir.described().get("name", "")))
        refs += tasks_of(ref) or [ref]
    # A job that was chained is what it goes on as: the same row for each of its ids.
    once = {one.job_id: one for one in statuses(refs)}.values()
    found = [one for one in once if show_all or not one.state.over]
    if as_json:
        print_json([one.as_json() for one in found])
        return
    rows = [
        [
            one.job_id,
            one.name,
            one.kind,
            one.state.value,
            str(one.restart_count),
            one.url or one.cause or one.slurm_reason or "",
        ]
        for one in found
    ]
    print_table(["ID", "NAME", "KIND", "STATE", "RESTARTS", "WHERE OR WHY"], rows)
