"""`hpcserve node`: what `srun` starts once on every node of a job."""

from __future__ import annotations

import click

from hpcserve.config.cluster import FABRICS
from hpcserve.config.job import PREFLIGHTS


@click.command(hidden=True, context_settings={"ignore_unknown_options": True})
@click.option("--run-dir", required=True)
@click.option("--verb", default="serve")
@click.option("--fabric", type=click.Choice(FABRICS), default="auto", envvar="HPCSERVE_FABRIC")
@click.option("--require-fabric", is_flag=True)
@click.option("--ifname", envvar="HPCSERVE_IFNAME")
@click.option("--ib-hca")
@click.option("--drain", type=float, default=20.0)
@click.option("--preflight", type=click.Choice(PREFLIGHTS), default="off")
@click.option("--engine-command", envvar="HPCSERVE_ENGINE_COMMAND")
@click.option("--master-port", type=int, default=0)
@click.argument("engine", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def command(
    ctx: click.Context,
    run_dir: str,
    verb: str,
    fabric: str,
    require_fabric: bool,
    ifname: str | None,
    ib_hca: str | None,
    drain: float,
    preflight: str,
    engine_command: str | None,
    master_port: int,
    engine: tuple[str, ...],
) -> None:
    """Find the head, start this node's part of the engine with the options ENGINE, and watch it."""
    from hpcserve.launcher.signals import SignalInbox

    inbox = SignalInbox()
    from pathlib import Path

    from hpcserve.config.cluster import ClusterConfig
    from hpcserve.launcher.engine_command import parallel_of
    from hpcserve.launcher.environment import current
    from hpcserve.launcher.job_dir import JobDir
    from hpcserve.launcher.node import Node, NodeOptions
    from hpcserve.log import setup_logging

    here = current()
    setup_logging(role=f"rank {here.rank} {here.node_name}")
    options = NodeOptions(
        verb=verb,
        world_size=parallel_of(engine).world_size,
        engine_command=engine_command,
        drain_s=drain,
        dist_port=master_port,
        preflight=preflight,
    )
    cluster = ClusterConfig(
        fabric=fabric, require_fabric=require_fabric, ifname=ifname, ib_hca=ib_hca
    )
    ctx.exit(Node(JobDir(Path(run_dir)), here, cluster, options, inbox).run(engine))
