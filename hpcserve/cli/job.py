"""`hpcserve job`: the batch process of a SLURM job (what the batch script runs)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click


@click.command(hidden=True, context_settings={"ignore_unknown_options": True})
@click.option("--run-dir", required=True)
@click.option("--kind", type=click.Choice(["serve", "batch"]), default="serve")
@click.option("--continue-with", default="none")
@click.option("--max-restarts", type=int, default=3)
@click.option("--ready-timeout", type=float, default=3600.0)
@click.option("--drain", type=float, default=20.0)
@click.option("--rank-timeout", type=float, default=60.0)
@click.option("--auth/--no-auth", default=True)
@click.option("--all-reduce", is_flag=True, help="--preflight full")
@click.option("--ifname", envvar="HPCSERVE_IFNAME")
@click.argument("step", nargs=-1, type=click.UNPROCESSED, required=True)
@click.pass_context
def command(
    ctx: click.Context,
    run_dir: str,
    kind: str,
    continue_with: str,
    max_restarts: int,
    ready_timeout: float,
    drain: float,
    rank_timeout: float,
    auth: bool,
    all_reduce: bool,
    ifname: str | None,
    step: tuple[str, ...],
) -> None:
    """Start STEP on the nodes, watch it, drain it in time, and say why it ended."""
    from hpcserve.launcher.signals import SignalInbox

    inbox = SignalInbox()  # before anything slow: SIGUSR1 ends a Python that has no handler
    from hpcserve.launcher.batch_process import AllReduce, supervise
    from hpcserve.launcher.supervisor import SupervisorOptions

    options = SupervisorOptions(
        kind=kind,
        continue_with=continue_with,
        max_restarts=max_restarts,
        ready_timeout_s=ready_timeout,
        drain_s=drain,
        rank_timeout_s=rank_timeout,
    )
    check = AllReduce(ifname) if all_reduce else None
    rows_done = partial(_rows_done, step) if kind == "batch" else int
    ctx.exit(supervise(run_dir, step, options, inbox, auth=auth, check=check, rows_done=rows_done))


def _rows_done(step: Sequence[str]) -> int:
    """Rows that the batch run of this job has finished, by its files; 0 where they cannot be read:
    no reason to end the supervisor."""
    from hpcserve.batch.run_dir import RunDir
    from hpcserve.batch.status import of_run
    from hpcserve.errors import HpcserveError
    from hpcserve.log import get_logger

    output = Path(step[step.index("--output") + 1]) if "--output" in step else None
    if output is None or not RunDir.of_output(output).manifest.is_file():
        return 0
    try:
        return int(of_run(RunDir.of_output(output))["num_finished"])
    except (HpcserveError, OSError) as error:
        get_logger(__name__).warning("cannot tell how far the run is: %s", error)
        return 0
