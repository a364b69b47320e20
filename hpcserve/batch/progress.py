"""A run as people watch it: a bar on a terminal, a line now and then in a log, a table at the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TextIO

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hpcserve.batch.report import BatchReport, RunResult
from hpcserve.batch.worker_status import WorkerStatus

_LOOK_S = 2.0


#: Every worker of the run, this one too.
Workers = Callable[[], list[WorkerStatus]]


@contextmanager
def shown(
    report: BatchReport,
    workers: Workers,
    stream: TextIO,
    *,
    log_interval_s: float,
    as_bar: bool,
) -> Iterator[None]:
    """While the block runs, its report is shown on `stream`: a bar, or a line now and then."""
    if as_bar:
        view = _View(report, workers)
        with Live(view, console=Console(file=stream), refresh_per_second=4, transient=True):
            yield
        return
    stop = threading.Event()
    lines = threading.Thread(
        target=_write_lines, args=(report, stream, log_interval_s, stop), daemon=True
    )
    lines.start()
    try:
        yield
    finally:
        stop.set()
        lines.join()


def progress_line(report: BatchReport) -> str:
    """Such as `1,234 of 2,742 rows (45%), 3 failed, 812 tokens/s, cache hits 34%, 2m10s left`."""
    left = report.seconds_left
    parts = [
        f"{report.num_finished:,} of {report.num_total:,} rows ({report.fraction_done or 0:.0%})"
    ]
    if report.num_failed:
        parts.append(f"{report.num_failed:,} failed")
    per_s = report.num_prompt_tokens / max(report.wall_s, 1e-9)
    parts.append(f"{per_s:,.0f} tokens/s in, {report.output_tokens_per_s:,.0f} out")
    parts.append(f"cache hits {report.cache_hit_rate:.0%}")
    parts.append(
        f"{duration(left)} left" if left is not None else f"{duration(report.wall_s)} so far"
    )
    return ", ".join(parts)


def print_summary(report: RunResult, place: str, stream: TextIO) -> None:
    """The closing table, on a terminal in colour."""
    Console(file=stream, soft_wrap=True).print(_summary(report, place))


def _summary(report: RunResult, place: str) -> Group:
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name, value in summary_rows(report).items():
        table.add_row(name, value)
    return Group(table, *(Text(note) for note in _notes(report)), Text(f"answers: {place}"))


def duration(seconds: float) -> str:
    """Such as 4.2s, 3m05s, 2h07m."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"


def summary_rows(report: RunResult) -> dict[str, str]:
    rows = {"rows answered": f"{report.num_ok:,}", "rows failed": f"{report.num_failed:,}"}
    for code, count in _most_common(report.errors):
        rows[f"  {code}"] = f"{count:,}"
    if report.num_blank:
        rows["blank lines skipped"] = f"{report.num_blank:,}"
    rows["prompt tokens"] = f"{report.num_prompt_tokens:,}"
    rows["  from the cache"] = f"{report.num_cached_tokens:,} ({report.cache_hit_rate:.0%})"
    rows["output tokens"] = f"{report.num_output_tokens:,}"
    rows["output tokens/s"] = f"{report.output_tokens_per_s:,.0f}"
    rows["rows/s"] = f"{report.num_rows / max(report.wall_s, 1e-9):,.1f}"
    rows["time"] = duration(report.wall_s)
    for name, values in report.percentiles.items():
        rows[f"{name}, p50 / p99"] = f"{values['p50']:,.1f} / {values['p99']:,.1f}"
    if report.num_runs > 1:
        rows["workers"] = f"{report.num_runs:,}"
    if report.num_engine_deaths:
        rows["engine deaths"] = f"{report.num_engine_deaths:,}"
    if report.gpu_hours:
        rows["GPU hours"] = f"{report.gpu_hours:,.2f}"
    if report.joules is not None:
        rows["energy"] = f"{report.joules / 3.6e6:,.3f} kWh"
    return rows


def _most_common(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda pair: -pair[1])


def _notes(report: RunResult) -> Iterator[str]:
    for column, count in _most_common(report.unused):
        yield f"note: column {column!r} of {_rows(count)} is no parameter and was not used"
    for model, count in _most_common(report.other_models):
        yield f"note: {_rows(count)} with the name of another model, {model!r}: answered by this run's"


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


class _View:
    """What rich draws again and again; it reads the report when it is asked to draw."""

    def __init__(self, report: BatchReport, workers: Workers) -> None:
        self._report = report
        self._workers = workers
        self._known: list[WorkerStatus] = []
        self._next_look_s = 0.0

    def __rich__(self) -> Group:
        row = Table.grid(padding=(0, 1), expand=True)
        row.add_column(ratio=1, min_width=10)
        row.add_column(no_wrap=True)
        bar = ProgressBar(total=1.0, completed=self._report.fraction_done or 0.0)
        row.add_row(bar, progress_line(self._report))
        return Group(row, *(Text(worker_line(one), style="dim") for one in self._alive()))

    def _alive(self) -> list[WorkerStatus]:
        """Where there are several: those that run, looked up now and then."""
        if time.monotonic() >= self._next_look_s:
            self._next_look_s = time.monotonic() + _LOOK_S
            self._known = [one for one in self._workers() if one.is_alive]
        return self._known if len(self._known) > 1 else []


def worker_line(worker: WorkerStatus) -> str:
    """Such as `node7-4711-a1b2c3: 1,234 rows, 2 failed, 51,000 tokens/s in, 812 out`."""
    failed = f", {worker.num_failed:,} failed" if worker.num_failed else ""
    return (
        f"{worker.name}: {worker.num_rows:,} rows{failed}, "
        f"{worker.num_prompt_tokens / worker.wall_s:,.0f} tokens/s in, "
        f"{worker.num_output_tokens / worker.wall_s:,.0f} out"
    )


def _write_lines(
    report: BatchReport, stream: TextIO, interval_s: float, stop: threading.Event
) -> None:
    while not stop.wait(interval_s):
        print(f"batch: {progress_line(report)}", file=stream, flush=True)
