"""`hpcserve render`: the batch script that `submit` or `batch` would submit, and nothing else."""

from __future__ import annotations

from typing import Any

import click

from hpcserve.cli._jobs import JOB_SECTIONS, layered_options
from hpcserve.cli.options import SectionedCommand, config_options
from hpcserve.config.load import ENGINE_CONFIGS
from hpcserve.config.server import ServerConfig


@click.group()
def command() -> None:
    """Print the batch script on stdout, with the origin of every value, and submit nothing."""


@command.command("submit", cls=SectionedCommand)
@click.argument("model_argument", metavar="[MODEL]", required=False)
@layered_options
@config_options({**JOB_SECTIONS, "Server": [ServerConfig], "Engine": ENGINE_CONFIGS})
@click.pass_context
def render_submit(
    ctx: click.Context,
    /,
    model_argument: str | None,
    cluster: str | None,
    preset: str | None,
    **_: Any,
) -> None:
    """The script of `hpcserve submit` with the same options."""
    from hpcserve.cli._submission import serve_request
    from hpcserve.launcher.script import render_script

    request = serve_request(ctx, model_argument, cluster, preset)
    click.echo(render_script(request), nl=False)
    if request.layout.warning:
        click.echo(f"note: {request.layout.warning}", err=True)
