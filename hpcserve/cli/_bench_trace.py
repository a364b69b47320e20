"""`hpcserve bench trace`: what a profile says, without a browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hpcserve.bench.cli_options import FILE

if TYPE_CHECKING:
    from rich.table import Table

    from hpcserve.bench.gpu_trace import GpuTrace


@click.command()
@click.argument("files", nargs=-1, required=True, type=FILE)
@click.option(
    "--top", type=click.IntRange(1), default=20, show_default=True, help="kernels to show"
)
@click.option("--output", "-o", type=FILE, help="write the result there, with all kernels (JSON)")
def trace(files: tuple[Path, ...], top: int, output: Path | None) -> None:
    """Show how busy the GPU was in torch profiler traces, and with which kernels.

    FILES are what /stop_profile names, or other traces of torch's profiler, plain or gzip.
    """
    from rich.console import Console

    from hpcserve.bench.gpu_trace import GpuTrace
    from hpcserve.bench.report import print_json, write_json

    console = Console()
    found = []
    for file in files:
        found.append((file, GpuTrace.load(file)))
        console.print(_table(*found[-1], top))
    if output:
        write_json(output, _result(found, None))
    print_json(_result(found, top))


def _table(file: Path, trace: GpuTrace, top: int) -> Table:
    from rich.markup import escape
    from rich.table import Table

    from hpcserve.bench.gpu_trace import together

    title = (
        f"{escape(file.name)}{f' · {escape(trace.device)}' if trace.device else ''} · "
        f"{trace.span_s:,.3f} s, GPU busy {trace.busy_share:.1%}"
    )
    table = Table(title=title, title_justify="left", expand=True)
    table.add_column("kernel", no_wrap=True, overflow="ellipsis", ratio=1)
    for column in ("count", "mean us", "total ms", "share"):
        table.add_column(column, justify="right", no_wrap=True)
    shown, left = trace.kernels[:top], trace.kernels[top:]
    if left:
        shown.append(together(f"({len(left)} others)", left))
    for one in shown:
        table.add_row(
            escape(one.name.removeprefix("void ")),
            f"{one.count:,}",
            f"{one.mean_us:,.2f}",
            f"{one.total_us / 1e3:,.3f}",
            f"{one.share:.1%}",
        )
    return table


def _result(found: list[tuple[Path, GpuTrace]], top: int | None) -> dict[str, Any]:
    """The kernels of each trace, or the `top` of them."""
    return {
        "benchmark": "trace",
        "traces": [
            {
                "file": str(file),
                "device": trace.device,
                "span_s": trace.span_s,
                "busy_s": trace.busy_s,
                "busy_share": trace.busy_share,
                "num_events": trace.num_events,
                "num_kernels": len(trace.kernels),
                "kernels": [
                    {
                        "name": one.name,
                        "count": one.count,
                        "mean_us": one.mean_us,
                        "total_us": one.total_us,
                        "share": one.share,
                    }
                    for one in trace.kernels[:top]
                ],
            }
            for file, trace in found
        ],
    }
