"""`hpcserve endpoint`: URL and key of a server."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from hpcserve.cli._jobs import print_json


@click.command()
@click.argument("job")
@click.option("--env", "as_env", is_flag=True, help="as lines for eval: OPENAI_BASE_URL and key")
@click.option("--json", "as_json", is_flag=True, help="as JSON, without the key itself")
def command(job: str, as_env: bool, as_json: bool) -> None:
    """Print where JOB answers. Fails unless it is ready now."""
    from hpcserve.errors import JobFailedError, LauncherError
    from hpcserve.launcher.base import JobState
    from hpcserve.launcher.files import read_json
    from hpcserve.launcher.resolve import find
    from hpcserve.launcher.status import status

    ref = find(job)
    one = status(ref)
    record = read_json(ref.job_dir.endpoint)
    if one.state is JobState.DEAD:
        raise JobFailedError(f"job {one.job_id} is dead: {one.cause}")
    if one.state not in (JobState.READY, JobState.DRAINING) or record is None:
        raise LauncherError(
            f"job {one.job_id} is {one.state.value}; `hpcserve wait {job}` waits until it answers"
        )
    key_file = record["api_key_file"]
    if as_json:
        print_json({**record, "state": one.state.value})
    elif as_env:
        key = Path(key_file).read_text(encoding="utf-8").strip() if key_file else "none"
        click.echo(f"export OPENAI_BASE_URL={shlex.quote(record['url'])}")
        click.echo(f"export OPENAI_API_KEY={shlex.quote(key)}")
    else:
        click.echo(record["url"])
        if key_file:
            click.echo(f"key in {key_file}", err=True)
