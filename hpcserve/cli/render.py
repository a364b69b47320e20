"""`hpcserve render`: the batch script that `submit` or `batch` would submit, and nothing else."""

from __future__ import annotations

from typing import Any

import click

from hpcserve.cli import batch
from hpcserve.cli._jobs import JOB_SECTIONS, layered_options, layered_settings
from hpcserve.cli.options import SectionedCommand, config_options, engine_config
from hpcserve.config.batch import BatchConfig
from hpcserve.config.load import ENGINE_CONFIGS, build
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
    from hpcserve.cli._submission import say_script, serve_request

    say_script(serve_request(ctx, model_argument, cluster, preset))


@command.command("batch", cls=SectionedCommand)
@click.argument("input_arguments", metavar="INPUT...", nargs=-1)
@layered_options
@config_options(batch.SECTIONS)
@click.pass_context
def render_batch(
    ctx: click.Context,
    /,
    input_arguments: tuple[str, ...],
    cluster: str | None,
    preset: str | None,
    **_: Any,
) -> None:
    """The script of `hpcserve batch` with the same options."""
    from hpcserve.cli._submission import batch_request, say_script

    settings = layered_settings(ctx, batch.BATCH_CONFIGS, cluster, preset)
    files = batch.with_inputs(build(BatchConfig, settings), input_arguments)
    say_script(batch_request(ctx, files, settings, engine_config(settings, None)))
