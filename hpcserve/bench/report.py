"""What a benchmark prints and writes: tables for people, one line of JSON for programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from hpcserve.bench.summary import Summary
from hpcserve.errors import OutputError

_LATENCIES = {
    "ttft_ms": "TTFT ms",
    "itl_ms": "ITL ms",
    "tpot_ms": "TPOT ms",
    "e2e_ms": "E2E ms",
    "send_lag_ms": "send lag ms",
}
_COLUMNS = ("mean", "p50", "p90", "p99", "max")
#: name -> (title, format of its number)
_SINGLE = {
    "duration_s": ("duration s", "{:,.2f}"),
    "output_tok_s": ("output tok/s", "{:,.1f}"),
    "steady_output_tok_s": ("output tok/s, middle 80 %", "{:,.1f}"),
    "total_tok_s": ("total tok/s", "{:,.1f}"),
    "requests_per_s": ("requests/s", "{:,.2f}"),
    "goodput_per_s": ("goodput requests/s", "{:,.2f}"),
    "num_ok": ("requests answered", "{:,.0f}"),
    "num_errors": ("requests failed", "{:,.0f}"),
    "num_short": ("answers too short", "{:,.0f}"),
    "mean_concurrency": ("mean concurrency", "{:,.1f}"),
    "tokens_per_chunk": ("tokens per chunk", "{:.2f}"),
    "cache_hit_rate": ("cache hit rate", "{:.1%}"),
    "json_valid_share": ("valid JSON", "{:.1%}"),
    "mfu": ("MFU", "{:.1%}"),
    "mbu": ("MBU", "{:.1%}"),
    "decode_floor_ms": ("decode floor ms", "{:.2f}"),
    "client_cpu_share_max": ("busiest client process", "{:.0%}"),
}


def print_cells(cells: list[dict[str, Any]], title: str) -> None:
    """A table per cell, and one over all of them where there are several."""
    console = Console()
    for cell in cells:
        console.print(_single_table(cell, title))
        if any(f"{name}.p50" in cell["summary"] for name in _LATENCIES):
            console.print(_latency_table(cell["summary"]))
        for run in cell["runs"]:
            if run.get("first_error"):
                console.print(f"first error: {run['first_error']}", style="red", markup=False)
                break
    if len(cells) > 1:
        console.print(_overview(cells, title))


def print_json(result: dict[str, Any]) -> None:
    """The last line of standard output."""
    print(msgspec.json.encode(result).decode(), flush=True)


def write_json(path: Path, result: dict[str, Any]) -> None:
    """The whole result, indented."""
    encoded = msgspec.json.format(msgspec.json.encode(result), indent=2)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded + b"\n")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}") from error


def _single_table(cell: dict[str, Any], title: str) -> Table:
    repeats = len(cell["runs"])
    table = Table(title=f"{title} · {cell['load']['label']}", title_justify="left")
    table.add_column("figure")
    table.add_column("median" if repeats > 1 else "value", justify="right")
    if repeats > 1:
        table.add_column(f"range of {repeats}", justify="right")
    for name, (label, number) in _SINGLE.items():
        found = cell["summary"].get(name)
        if found is None or (name == "num_short" and not found["max"]):
            continue
        row = [label, number.format(found["median"])]
        if repeats > 1:
            row.append(f"{number.format(found['min'])} – {number.format(found['max'])}")
        table.add_row(*row)
    return table


def _latency_table(summary: Summary) -> Table:
    table = Table("latency", *(f"{column}" for column in _COLUMNS))
    for column in table.columns[1:]:
        column.justify = "right"
    names = [*_LATENCIES, *sorted(_group_names(summary))]
    for name in names:
        if f"{name}.p50" in summary:
            values = [f"{summary[f'{name}.{column}']['median']:,.2f}" for column in _COLUMNS]
            table.add_row(_latency_title(name), *values)
    return table


def _group_names(summary: Summary) -> set[str]:
    """`groups.NAME.ttft_ms` and `.itl_ms` of every group."""
    ends = (".ttft_ms.p50", ".itl_ms.p50")
    return {
        name.removesuffix(".p50")
        for name in summary
        if name.startswith("groups.") and name.endswith(ends)
    }


def _latency_title(name: str) -> str:
    if not name.startswith("groups."):
        return _LATENCIES[name]
    group, _, metric = name.removeprefix("groups.").rpartition(".")
    return f"{_LATENCIES[metric]}, {group}"


def _overview(cells: list[dict[str, Any]], title: str) -> Table:
    """In 80 columns: what is no terminal has as many, and a number that is cut says nothing."""
    table = Table(
        title=f"{title} · all, times in ms",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    wanted = {
        "output_tok_s": "output\ntok/s",
        "requests_per_s": "req/s",
        "ttft_ms.p50": "TTFT\np50",
        "ttft_ms.p99": "TTFT\np99",
        "itl_ms.p50": "ITL\np50",
        "itl_ms.p99": "ITL\np99",
        "tpot_ms.p50": "TPOT\np50",
        "e2e_ms.p50": "E2E\np50",
        "num_errors": "failed",
    }
    present = [name for name in wanted if any(name in cell["summary"] for cell in cells)]
    table.add_column("load")
    for name in present:
        table.add_column(wanted[name], justify="right", no_wrap=True)
    for cell in cells:
        row = [
            _short(cell["summary"][name]["median"]) if name in cell["summary"] else "-"
            for name in present
        ]
        table.add_row(cell["load"]["label"], *row)
    return table


def _short(value: float) -> str:
    """Three digits or more; decimals of what has fewer before its point."""
    if value == 0 or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
