"""`hpcserve bench self-test` and `frontend`: HTTP alone, from both ends."""

from __future__ import annotations

from pathlib import Path

import click

from hpcserve.bench.cli_options import FILE, num_cores


@click.command("self-test")
@click.option("--streams", type=click.IntRange(1), default=64, show_default=True)
@click.option("--tokens", type=click.IntRange(1), default=2000, show_default=True)
@click.option(
    "--servers", type=click.IntRange(1), help="null servers (default: half of the cores, at most 4)"
)
@click.option("--client-processes", type=click.IntRange(1), default=1, show_default=True)
def self_test(streams: int, tokens: int, servers: int | None, client_processes: int) -> None:
    """Flood the client from null servers: how many chunks a second can one process take?"""
    from hpcserve.bench.report import print_json
    from hpcserve.bench.self_test import self_test as run_self_test

    count = servers or max(1, min(4, num_cores() // 2))
    result = run_self_test(
        streams=streams, tokens=tokens, num_servers=count, num_processes=client_processes
    )
    click.echo(
        f"{result['chunks_per_s_per_process']:,.0f} chunks/s per client process, which used "
        f"{result['client_cpu_share_max']:.0%} of a core: {result['chunks_per_cpu_s']:,.0f} chunks "
        f"per processor second, {result['chunks_per_read']:.2f} per read"
    )
    print_json(result)


@click.command("frontend")
@click.option("--streams", type=click.IntRange(1), default=256, show_default=True)
@click.option(
    "--tokens", type=click.IntRange(2), default=1000, show_default=True, help="per stream"
)
@click.option(
    "--rate",
    type=click.FloatRange(min=1),
    default=50_000.0,
    show_default=True,
    help="tokens per second that the engine's stand-in makes, over all streams",
)
@click.option("--api-workers", type=click.IntRange(1), default=1, show_default=True)
@click.option("--client-processes", type=click.IntRange(1), default=1, show_default=True)
@click.option("--output", type=FILE, help="write the result and where it comes from, as JSON")
def frontend(
    streams: int,
    tokens: int,
    rate: float,
    api_workers: int,
    client_processes: int,
    output: Path | None,
) -> None:
    """Put the HTTP server before an engine's stand-in: how many chunks a second can it send?"""
    from hpcserve.bench.environment import environment
    from hpcserve.bench.frontend import FrontendPlan, bench_frontend
    from hpcserve.bench.report import print_json, write_json

    result = bench_frontend(FrontendPlan(streams, tokens, rate, api_workers, client_processes))
    if output is not None:
        write_json(output, {**result, "environment": environment()})
    click.echo(
        f"{result['chunks_per_s_per_process']:,.0f} chunks/s per HTTP process, which used "
        f"{result['frontend_cpu_share']:.0%} of a core: {result['cpu_us_per_chunk']:.1f} us per "
        f"chunk, {result['tokens_per_chunk']:.2f} tokens per chunk"
    )
    print_json(result)
