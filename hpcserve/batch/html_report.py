"""The report as one HTML page that needs nothing beside it: the plots are SVG, drawn here."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence

from hpcserve.batch.manifest import Manifest
from hpcserve.batch.progress import summary_rows
from hpcserve.batch.report import RunResult
from hpcserve.batch.worker_status import WorkerStatus

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 560, 200, 56, 28
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:76em;margin:2em auto;padding:0 1em;color:#1b1f24}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em .8em;text-align:right}
td:first-child,th:first-child{text-align:left}tr:nth-child(even){background:#f4f6f8}
figure{display:inline-block;margin:0 1.5em 1.5em 0}figcaption{font-weight:600}
svg{background:#fafbfc}text{font:11px system-ui,sans-serif;fill:#57606a}
"""

Histogram = tuple[Sequence[int], Sequence[float]]


def page(
    result: RunResult,
    workers: Sequence[WorkerStatus],
    manifest: Manifest,
    histograms: Mapping[str, Histogram],
) -> str:
    """A whole HTML document."""
    title = f"Batch run {manifest.output}"
    figures = [_figure("output tokens/s", _rates(workers))]
    figures += [_figure(name, _bars(*histogram)) for name, histogram in histograms.items()]
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>',
            f"<style>{_STYLE}</style>",
            f"<h1>{html.escape(title)}</h1>",
            _table(summary_rows(result).items()),
            *(figure for figure in figures if figure),
            "<h2>Workers</h2>",
            _worker_table(workers),
            "<h2>What the answers depend on</h2>",
            _table(
                (f"{part}: {name}", str(value))
                for part, facts in manifest.content.items()
                for name, value in facts.items()
                if value is not None
            ),
            "</html>",
            "",
        ]
    )


def _table(pairs: Iterable[tuple[str, object]]) -> str:
    rows = [
        f"<tr><td>{html.escape(str(name)).replace('  ', '&emsp;')}</td>"
        f"<td>{html.escape(str(value))}</td></tr>"
        for name, value in pairs
    ]
    return f"<table>{''.join(rows)}</table>"


def _worker_table(workers: Sequence[WorkerStatus]) -> str:
    head = ("worker", "job", "rows", "failed", "output tokens", "seconds", "engine deaths")
    lines = [
        (
            one.name,
            one.job_id,
            f"{one.num_rows:,}",
            f"{one.num_failed:,}",
            f"{one.num_output_tokens:,}",
            f"{one.wall_s:,.0f}",
            f"{one.num_engine_deaths}",
        )
        for one in workers
    ]
    cells = "".join(f"<th>{name}</th>" for name in head)
    rows = ["".join(f"<td>{html.escape(cell)}</td>" for cell in line) for line in lines]
    # The colour of its line in the plot.
    rows = [
        row.replace("<td>", f'<td><span style="color:{_color(number)}">\u25a0</span> ', 1)
        for number, row in enumerate(rows)
    ]
    return f"<table><tr>{cells}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def _figure(caption: str, drawing: str) -> str:
    if not drawing:
        return ""
    return f"<figure><figcaption>{html.escape(caption)}</figcaption>{drawing}</figure>"


def _rates(workers: Sequence[WorkerStatus]) -> str:
    """Output tokens a second over time, one line for each worker."""
    if not workers:
        return ""
    start = min(one.started_s for one in workers)
    lines = []
    for one in workers:
        points = [
            (one.started_s - start + later[0], (later[2] - before[2]) / (later[0] - before[0]))
            for before, later in zip(one.series, one.series[1:], strict=False)
            if later[0] > before[0]
        ]
        lines.append(points)
    everything = [point for points in lines for point in points]
    if not everything:
        return ""
    right = max(x for x, _ in everything) or 1.0
    top = max(y for _, y in everything) or 1.0
    drawn = []
    for number, points in enumerate(lines):
        places = " ".join(f"{_x(x / right):.1f},{_y(y / top):.1f}" for x, y in points)
        drawn.append(f'<polyline fill="none" stroke="{_color(number)}" points="{places}"/>')
    return _svg("".join(drawn), 0.0, right, top, "s")


def _color(number: int) -> str:
    """Of worker `number`."""
    return f"hsl({(number * 67 + 210) % 360} 60% 45%)"


def _bars(counts: Sequence[int], edges: Sequence[float]) -> str:
    top = max(counts, default=0)
    if not top:
        return ""
    width = (_WIDTH - _LEFT) / len(counts)
    drawn = "".join(
        f'<rect x="{_LEFT + number * width:.1f}" y="{_y(count / top):.1f}" '
        f'width="{max(width - 1, 0.5):.1f}" height="{_y(0) - _y(count / top):.1f}" fill="#3b76c4"/>'
        for number, count in enumerate(counts)
    )
    return _svg(drawn, edges[0], edges[-1], float(top), "")


def _svg(drawn: str, left: float, right: float, top: float, unit: str) -> str:
    base = _HEIGHT - _BOTTOM
    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img">{drawn}'
        f'<line x1="{_LEFT}" y1="{base}" x2="{_WIDTH}" y2="{base}" stroke="#8c959f"/>'
        f'<text x="{_LEFT}" y="{base + 16}">{left:,.4g}{unit}</text>'
        f'<text x="{_WIDTH}" y="{base + 16}" text-anchor="end">{right:,.4g}{unit}</text>'
        f'<text x="{_LEFT - 4}" y="14" text-anchor="end">{top:,.4g}</text></svg>'
    )


def _x(share: float) -> float:
    return _LEFT + share * (_WIDTH - _LEFT)


def _y(share: float) -> float:
    return 8 + (1 - share) * (_HEIGHT - _BOTTOM - 8)
