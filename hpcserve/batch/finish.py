"""The end of a run: every shard is there, so the output can be, and the report of it all."""

from __future__ import annotations

import glob
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import numpy as np

from hpcserve.batch import html_report, journal
from hpcserve.batch.durable import replace_file, storage, sweep
from hpcserve.batch.journal import RowRecord
from hpcserve.batch.lease import Claims, Owner
from hpcserve.batch.ledger import error_code
from hpcserve.batch.manifest import Manifest
from hpcserve.batch.merge import errors_path, growing_path, write_output
from hpcserve.batch.report import RunResult
from hpcserve.batch.run_dir import RunDir
from hpcserve.batch.worker_status import active_s, read_all
from hpcserve.errors import IncompleteRunError, RowsFailedError
from hpcserve.log import get_logger

log = get_logger(__name__)

_POLL_S = 0.5


def known_result(run_dir: RunDir, manifest: Manifest, output: Path) -> RunResult | None:
    """The report of a run whose output is written; None where there is still something to do."""
    if not run_dir.report.exists() or not output.exists():
        return None
    if len(run_dir.committed()) < len(manifest.shards):
        return None
    return msgspec.json.decode(run_dir.report.read_bytes(), type=RunResult)


def finish_run(
    run_dir: RunDir, manifest: Manifest, output: Path, max_error_rate: float = 1.0
) -> RunResult:
    """Write output and reports, once also where several workers end together.

    Raises IncompleteRunError; RowsFailedError (with the output written) where too many rows failed.
    """
    claims = Claims(run_dir, manifest, Owner.here())
    try:
        while (result := known_result(run_dir, manifest, output)) is None:
            with storage(run_dir.leases):
                is_mine = claims.take_merge()
            if is_mine:
                result = _finish(run_dir, manifest, output)
                break
            time.sleep(_POLL_S)
    finally:
        claims.close()
    rate = result.num_failed / max(result.num_rows, 1)
    if rate > max_error_rate:
        raise RowsFailedError(
            f"{result.num_failed:,} of {result.num_rows:,} rows failed, more than --max-error-rate "
            f"{max_error_rate:g} allows; the output {output} is written"
        )
    return result


def _finish(
    run_dir: RunDir, manifest: Manifest, output: Path, following: Iterable[int] | None = None
) -> RunResult:
    tally = _Tally()
    write_output(run_dir, manifest, output, observe=tally.add, following=following)
    result = tally.result(run_dir, manifest)
    with storage(run_dir.report):
        page = html_report.page(result, read_all(run_dir), manifest, tally.histograms())
        replace_file(run_dir.html_report, page.encode())
        replace_file(run_dir.report, msgspec.json.format(msgspec.json.encode(result)))
        _sweep(run_dir, output)
    return result


class Follower:
    """Writes the output of an unordered run while it goes on, shard by shard.

    Of several workers one does it. One that ends early, for whatever reason, leaves nothing behind:
    `finish_run` writes the whole output then.
    """

    def __init__(self, run_dir: RunDir, manifest: Manifest, output: Path) -> None:
        self._run_dir = run_dir
        self._manifest = manifest
        self._output = output
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follow", daemon=True)

    def __enter__(self) -> Follower:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Where the run went to its end, so does the output."""
        if kind is not None:
            self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        claims = Claims(self._run_dir, self._manifest, Owner.here())
        try:
            if claims.take_merge():
                _remove_growing(self._output)
                _finish(self._run_dir, self._manifest, self._output, self._as_they_finish())
        except _StoppedError:
            pass
        except (IncompleteRunError, OSError) as error:
            log.warning("the output is written at the end of the run, not meanwhile: %s", error)
        finally:
            claims.close()

    def _as_they_finish(self) -> Iterator[int]:
        written: set[int] = set()
        while len(written) < len(self._manifest.shards):
            new = sorted(self._run_dir.committed() - written)
            yield from new
            written.update(new)
            if not new and self._stop.wait(_POLL_S):
                raise _StoppedError


class _StoppedError(Exception):
    """Never leaves this module."""


def _sweep(run_dir: RunDir, output: Path) -> None:
    """What workers that were killed have left: journals and leases of finished shards, files half
    written. Every shard is committed by now, so nobody needs them."""
    leftovers = [
        *run_dir.journals.iterdir(),
        *(one for one in run_dir.leases.iterdir() if one.name.isdigit()),
        *output.parent.glob(f".{glob.escape(output.name)}.*.tmp"),
    ]
    for folder in (run_dir.shards, run_dir.leases, run_dir.workers, run_dir.path):
        leftovers += folder.glob(".*.tmp")
    for path in leftovers:
        sweep(path)
    _remove_growing(output)


def _remove_growing(output: Path) -> None:
    """What a worker that was killed has left of an output that it wrote meanwhile."""
    for path in (output, errors_path(output)):
        sweep(growing_path(path))


class _Tally:
    """Every row of the output, counted on its way there: 12 bytes for each that was answered."""

    def __init__(self) -> None:
        self._result = RunResult()
        self._errors: Counter[str] = Counter()
        self._block: list[tuple[float, float, float]] = []
        self._blocks: list[np.ndarray[tuple[int, int], np.dtype[np.float32]]] = []

    def add(self, shard: int, record: RowRecord) -> None:
        result = self._result
        result.num_rows += 1
        result.num_prompt_tokens += record.num_prompt_tokens
        result.num_output_tokens += record.num_output_tokens
        result.num_cached_tokens += record.num_cached_tokens
        if record.status == journal.OK:
            result.num_ok += 1
            self._block.append(
                (record.latency_s, record.num_prompt_tokens, record.num_output_tokens)
            )
            if len(self._block) >= 1 << 14:
                self._close_block()
            return
        result.num_failed += 1
        result.num_quarantined += record.status == journal.QUARANTINED
        self._errors[error_code(record)] += 1
        if result.first_failure is None:
            error = msgspec.json.decode(record.payload)["error"]
            result.first_failure = (error["line"], error["message"])

    def histograms(self) -> dict[str, tuple[list[int], list[float]]]:
        """Name -> counts and edges, for the plots."""
        found = {}
        for name, values in self._values().items():
            counts, edges = np.histogram(values, bins=40)
            found[name] = (counts.tolist(), edges.tolist())
        return found

    def result(self, run_dir: RunDir, manifest: Manifest) -> RunResult:
        result, workers = self._result, read_all(run_dir)
        result.errors = dict(self._errors)
        result.num_blank = sum(one.num_blank for one in manifest.scan.files)
        result.percentiles = {name: _percentiles(v) for name, v in self._values().items()}
        result.num_runs = len(workers)
        result.num_retries = sum(one.num_retries for one in workers)
        result.num_engine_deaths = sum(one.num_engine_deaths for one in workers)
        result.unused = dict(sum((Counter(one.unused) for one in workers), Counter()))
        result.other_models = dict(sum((Counter(one.other_models) for one in workers), Counter()))
        result.active_s = active_s(workers)
        result.gpu_hours = sum(one.engine_s * one.num_gpus for one in workers) / 3600
        told = [one.joules for one in workers if one.joules is not None]
        result.joules = sum(told) if told else None
        return result

    def _close_block(self) -> None:
        if self._block:
            self._blocks.append(np.array(self._block, dtype=np.float32))
            self._block = []

    def _values(self) -> dict[str, np.ndarray[tuple[int], np.dtype[np.float32]]]:
        self._close_block()
        if not self._blocks:
            return {}
        self._blocks = [np.concatenate(self._blocks)]
        names = ("seconds per row", "prompt tokens per row", "output tokens per row")
        return {name: self._blocks[0][:, column] for column, name in enumerate(names)}


def _percentiles(values: np.ndarray[tuple[int], np.dtype[np.float32]]) -> dict[str, float]:
    p50, p90, p99 = np.percentile(values, (50, 90, 99))
    return {
        "p50": float(p50),
        "p90": float(p90),
        "p99": float(p99),
        "max": float(values.max()),
        "mean": float(values.mean()),
    }
