"""`hpcserve status`: one job, in full."""

from __future__ import annotations

import time

import click

from hpcserve.cli._jobs import print_json


@click.command()
@click.argument("job")
@click.option("--json", "as_json", is_flag=True, help="as JSON")
def command(job: str, as_json: bool) -> None:
    """Say what JOB (id, name, array task or run directory) is doing, and why it died if it did.

    Exit code 0 unless it is dead, then 1.
    """
    from hpcserve.launcher.resolve import find
    from hpcserve.launcher.status import status

    one = status(find(job), thorough=True)
    if as_json:
        print_json(one.as_json())
    else:
        left = None if one.end_time is None else max(0.0, one.end_time - time.time())
        facts = {
            "job": f"{one.job_id}  {one.name}",
            "state": one.state.value,
            "cause": one.cause,
            "note": one.message,
            "url": one.url,
            "nodes": ", ".join(one.nodes),
            "restarts": str(one.restart_count),
            "heartbeat": None
            if one.heartbeat_age_s is None
            else f"{one.heartbeat_age_s:.0f} s ago",
            "time left": None if left is None or one.state.over else f"{left / 60:.0f} min",
            "slurm": " ".join(filter(None, (one.slurm_state, one.slurm_reason))),
            "run dir": one.run_dir,
        }
        for name, value in facts.items():
            if value:
                click.echo(f"{name:<10} {value}")
    if one.state.value == "dead":
        click.get_current_context().exit(1)
