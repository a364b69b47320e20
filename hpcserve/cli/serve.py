"""`hpcserve serve`: an HTTP server for one model."""

from __future__ import annotations

from typing import Any

import click

from hpcserve.cli.options import SectionedCommand, config_options, engine_config, settings_of
from hpcserve.config.load import ENGINE_CONFIGS, build
from hpcserve.config.server import ServerConfig
from hpcserve.log import setup_logging


@click.command(cls=SectionedCommand)
@click.argument("model_argument", metavar="[MODEL]", required=False)
@config_options({"Server": [ServerConfig], "Engine": ENGINE_CONFIGS})
@click.pass_context
def command(ctx: click.Context, /, model_argument: str | None, **_: Any) -> None:
    """Serve MODEL over HTTP: OpenAI's API and SGLang's.

    Without a model: HPCSERVE_MODEL, else the bundled tiny-chat.
    """
    setup_logging()
    settings = settings_of(ctx, [ServerConfig, *ENGINE_CONFIGS])
    engine, server = engine_config(settings, model_argument), build(ServerConfig, settings)
    # Here and not above: `--help` and a mistake in the options must not wait for it.
    if engine.parallel.node_rank > 0:
        from hpcserve.engine.node_agent import run_agent

        ctx.exit(run_agent(engine))
    from hpcserve.server.run import run_server

    ctx.exit(run_server(engine, server))
