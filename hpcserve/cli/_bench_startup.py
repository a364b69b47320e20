"""`hpcserve bench startup`: from the start of a process to its first answer."""

from __future__ import annotations

from pathlib import Path

import click

from hpcserve.bench.cli_options import FILE


@click.command()
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--command",
    "other",
    help="another server's command line, with {port} where the port belongs",
)
@click.option("--cold", is_flag=True, help="with empty folders for compiled kernels")
@click.option("--repeats", type=click.IntRange(1), default=1, show_default=True)
@click.option("--timeout", default=900.0, show_default=True, help="seconds to wait for an answer")
@click.option("--show-log", is_flag=True, help="print the server's lines with their seconds")
@click.option("--output", "-o", type=FILE, help="write the whole result there (JSON)")
def startup(
    arguments: tuple[str, ...],
    other: str | None,
    cold: bool,
    repeats: int,
    timeout: float,
    show_log: bool,
    output: Path | None,
) -> None:
    """Time a server from the start of its process to its first answer.

    ARGUMENTS after -- go to `hpcserve serve`.
    """
    import shlex

    from hpcserve.bench.environment import environment
    from hpcserve.bench.report import print_json, write_json
    from hpcserve.bench.startup import hpcserve_command, measure_startup, print_startup
    from hpcserve.bench.summary import summarize

    if other and arguments:
        raise click.UsageError("give either --command or arguments of `hpcserve serve`")
    line = shlex.split(other) if other else hpcserve_command(list(arguments))
    runs = []
    for _ in range(repeats):
        times = measure_startup(line, cold=cold, timeout_s=timeout)
        print_startup(times, show_log=show_log)
        runs.append(times.figures())
    result = {
        "benchmark": "startup",
        "server_command": shlex.join(line),
        "cold": cold,
        "runs": runs,
        "summary": summarize(runs),
        "environment": environment(),
    }
    if output:
        write_json(output, result)
    print_json(result)
