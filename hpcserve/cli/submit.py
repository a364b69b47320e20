"""`hpcserve submit`: a server as a SLURM job."""

from __future__ import annotations

from typing import Any

import click

from hpcserve.cli._jobs import JOB_SECTIONS, LAUNCHERS, layered_options, print_json
from hpcserve.cli.options import SectionedCommand, config_options
from hpcserve.config.load import ENGINE_CONFIGS
from hpcserve.config.server import ServerConfig


@click.command(cls=SectionedCommand)
@click.argument("model_argument", metavar="[MODEL]", required=False)
@click.option(
    "--launcher",
    type=click.Choice((*LAUNCHERS, "debug")),
    default="auto",
    envvar="HPCSERVE_LAUNCHER",
    help="auto: SLURM where it is; local: this machine; debug: here, in the foreground",
)
@click.option("--json", "as_json", is_flag=True, help="print id and run directory as JSON")
@click.option("--force", is_flag=True, help="submit even what does not seem to fit")
@layered_options
@config_options({**JOB_SECTIONS, "Server": [ServerConfig], "Engine": ENGINE_CONFIGS})
@click.pass_context
def command(
    ctx: click.Context,
    /,
    model_argument: str | None,
    launcher: str,
    as_json: bool,
    force: bool,
    cluster: str | None,
    preset: str | None,
    **_: Any,
) -> None:
    """Serve MODEL as a SLURM job, and say how to reach it.

    Options win in this order: command line, environment, cluster file, preset.
    """
    from hpcserve.cli import _submission as submission
    from hpcserve.launcher.plan.check import refuse_what_cannot_fit

    request = submission.serve_request(ctx, model_argument, cluster, preset)
    if not force:
        refuse_what_cannot_fit(request)
    job_id = submission.submit(request, launcher)
    if as_json:
        print_json({"job_id": job_id, "run_dir": str(request.run_dir), "name": request.name})
    else:
        submission.say_submitted(request, job_id)
    if launcher == "debug":
        from hpcserve.launcher import debug

        ctx.exit(debug.run(request.run_dir))
