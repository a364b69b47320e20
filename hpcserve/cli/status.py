"""`hpcserve status`: one job, in full."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from hpcserve.cli._jobs import print_json

if TYPE_CHECKING:
    from hpcserve.launcher.status import JobStatus


@click.command()
@click.argument("job")
@click.option("--json", "as_json", is_flag=True, help="as JSON")
def command(job: str, as_json: bool) -> None:
    """Say what JOB (id, name, array task or run directory) is doing, and why it died if it did.

    Exit code 0 unless it is dead, then 1; of an array, unless all that is left of it is dead.
    """
    from hpcserve.launcher.replicas import servers_of, together
    from hpcserve.launcher.resolve import find
    from hpcserve.launcher.status import statuses

    ref = find(job)
    parts = statuses(servers_of(ref), thorough=True)
    is_array = len(parts) > 1
    one = together(ref, parts) if is_array else parts[0]
    if as_json:
        tasks = {"tasks": [part.as_json() for part in parts]} if is_array else {}
        print_json({**one.as_json(), **tasks})
    else:
        _print(one)
        for part in parts if is_array else []:
            click.echo(f"  {part.job_id:<10} {part.state.value:<9} {part.url or part.cause or ''}")
    if one.state.value == "dead":
        click.get_current_context().exit(1)


def _print(one: JobStatus) -> None:
    left = None if one.end_time is None else max(0.0, one.end_time - time.time())
    waits_or_over = one.state.over or one.state.value == "pending"
    beat = None if waits_or_over else one.heartbeat_age_s
    facts = {
        "job": f"{one.job_id}  {one.name}",
        "state": one.state.value,
        "cause": one.cause,
        "note": one.message,
        "url": one.url,
        "nodes": ", ".join(one.nodes),
        "restarts": str(one.restart_count),
        "heartbeat": None if beat is None else f"{beat:.0f} s ago",
        "time left": None if left is None or waits_or_over else f"{left / 60:.0f} min",
        "slurm": " ".join(filter(None, (one.slurm_state, one.slurm_reason))),
        "run dir": one.run_dir,
    }
    for name, value in facts.items():
        if value:
            click.echo(f"{name:<10} {value}")
