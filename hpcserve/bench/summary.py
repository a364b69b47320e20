"""Over the repeats of a run: median and range of every figure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hpcserve.bench.percentiles import spread

Summary = dict[str, dict[str, float]]


def summarize(runs: list[dict[str, Any]]) -> Summary:
    """Dotted name, such as `ttft_ms.p50` -> median, min and max over the runs that have it."""
    collected: dict[str, list[float]] = {}
    for run in runs:
        for name, value in flatten(run):
            collected.setdefault(name, []).append(value)
    return {name: spread(values) for name, values in collected.items()}


def flatten(figures: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number of nested dicts, under its dotted name."""
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield prefix + name, float(value)
