"""`--plot FILE.png`: throughput against latency, one point per load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpcserve.errors import OutputError, UsageError

_PANELS = (("tpot_ms", "time per output token, ms"), ("ttft_ms", "time to first token, ms"))
_FALLBACK = (("e2e_ms", "end to end, ms"),)


def plot_cells(cells: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draw median and 99th percentile of each latency over the output tokens per second.

    Raises UsageError where matplotlib is missing, OutputError where the file cannot be written.
    """
    try:
        import matplotlib
    except ImportError:
        raise UsageError("--plot needs matplotlib: pip install 'hpcserve[bench]'") from None
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    streamed = any("tpot_ms.p50" in cell["summary"] for cell in cells)
    panels = _PANELS if streamed else _FALLBACK
    figure = Figure(figsize=(6.0 * len(panels), 4.5), layout="constrained")
    figure.suptitle(title)
    for place, (name, label) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), place)
        _draw(axes, cells, name)
        axes.set_xlabel("output tokens per second")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.set_ylim(bottom=0)
        axes.legend()
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot write the plot {path}: {error}") from error


def _draw(axes: Any, cells: list[dict[str, Any]], name: str) -> None:
    shown = [cell for cell in cells if f"{name}.p50" in cell["summary"]]
    x = [cell["summary"]["output_tok_s"]["median"] for cell in shown]
    for quantile, style in (("p50", "o-"), ("p99", "s--")):
        y = [cell["summary"][f"{name}.{quantile}"]["median"] for cell in shown]
        axes.plot(x, y, style, label=quantile)
    for cell, along in zip(shown, x, strict=True):
        up = cell["summary"][f"{name}.p50"]["median"]
        axes.annotate(cell["load"]["label"], (along, up), textcoords="offset points", xytext=(5, 5))
