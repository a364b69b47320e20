"""`hpcserve endpoint`: URL and key of a server."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hpcserve.cli._jobs import print_json

if TYPE_CHECKING:
    from hpcserve.launcher.resolve import JobRef


@click.command()
@click.argument("job")
@click.option("--env", "as_env", is_flag=True, help="as lines for eval: OPENAI_BASE_URL and key")
@click.option("--json", "as_json", is_flag=True, help="as JSON, without the key itself")
def command(job: str, as_env: bool, as_json: bool) -> None:
    """Print where JOB answers. Fails unless it is ready now.

    An array of servers has an address for each: all that are ready are printed (with --json as a
    list); --env takes one of them, such as 4711_0.
    """
    from hpcserve.launcher.replicas import servers_of, single
    from hpcserve.launcher.resolve import find

    ref = find(job)
    if as_env:
        _print_env(ready_records([single(ref)])[0])
        return
    refs = servers_of(ref)
    records = ready_records(refs)
    if as_json:
        print_json(records if refs != [ref] else records[0])
        return
    for record in records:
        click.echo(record["url"])
        if record["api_key_file"]:
            click.echo(f"key in {record['api_key_file']}", err=True)


def ready_records(refs: list[JobRef]) -> list[dict[str, Any]]:
    """endpoint.json of those that are ready, with their state as it is now.

    Raises JobFailedError or LauncherError, about the first, where none is.
    """
    from hpcserve.errors import JobFailedError, LauncherError
    from hpcserve.launcher.base import JobState
    from hpcserve.launcher.files import read_json
    from hpcserve.launcher.status import statuses

    now = statuses(refs)
    found = []
    for ref, one in zip(refs, now, strict=True):
        record = read_json(ref.job_dir.endpoint)
        if one.state in (JobState.READY, JobState.DRAINING) and record is not None:
            found.append({**record, "state": one.state.value})
    if found:
        return found
    dead = next((one for one in now if one.state is JobState.DEAD), None)
    if dead is not None:
        raise JobFailedError(f"job {dead.job_id} is dead: {dead.cause}")
    raise LauncherError(
        f"job {now[0].job_id} is {now[0].state.value}; "
        f"`hpcserve wait {now[0].job_id}` waits until it answers"
    )


def _print_env(record: dict[str, Any]) -> None:
    key_file = record["api_key_file"]
    key = Path(key_file).read_text(encoding="utf-8").strip() if key_file else "none"
    click.echo(f"export OPENAI_BASE_URL={shlex.quote(record['url'])}")
    click.echo(f"export OPENAI_API_KEY={shlex.quote(key)}")
