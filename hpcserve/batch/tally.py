"""What a run came to, counted row by row on the way to its output."""

from __future__ import annotations

from collections import Counter

import msgspec
import numpy as np
import numpy.typing as npt

from hpcserve.batch import journal
from hpcserve.batch.journal import RowRecord
from hpcserve.batch.ledger import error_code
from hpcserve.batch.manifest import Manifest
from hpcserve.batch.report import RunResult
from hpcserve.batch.run_dir import RunDir
from hpcserve.batch.worker_status import active_s, read_all

#: Answered rows whose sizes are kept; of more than these every second, every fourth, ...
_MAX_SAMPLES = 1 << 20
_NAMES = ("seconds per row", "prompt tokens per row", "output tokens per row")

Values = npt.NDArray[np.float32]


class Tally:
    """Percentiles are exact up to a million answered rows, and of an even sample of more: memory
    does not depend on the number of rows."""

    def __init__(self, max_samples: int = _MAX_SAMPLES) -> None:
        self._result = RunResult()
        self._errors: Counter[str] = Counter()
        self._samples = np.empty((max_samples, len(_NAMES)), np.float32)
        self._num_samples = 0
        self._stride = 1
        self._sums = [0.0] * len(_NAMES)
        self._most = [0.0] * len(_NAMES)

    def add(self, shard: int, record: RowRecord) -> None:
        result = self._result
        result.num_rows += 1
        result.num_prompt_tokens += record.num_prompt_tokens
        result.num_output_tokens += record.num_output_tokens
        result.num_cached_tokens += record.num_cached_tokens
        if record.status == journal.OK:
            self._add_sizes((record.latency_s, record.num_prompt_tokens, record.num_output_tokens))
            result.num_ok += 1
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
        for name, values in self._columns().items():
            counts, edges = np.histogram(values, bins=40)
            found[name] = ((counts * self._stride).tolist(), edges.tolist())
        return found

    def result(self, run_dir: RunDir, manifest: Manifest) -> RunResult:
        result, workers = self._result, read_all(run_dir)
        result.errors = dict(self._errors)
        result.num_blank = sum(one.num_blank for one in manifest.scan.files)
        result.percentiles = self.percentiles()
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

    def percentiles(self) -> dict[str, dict[str, float]]:
        """Name -> p50, p90, p99, max and mean of the answered rows."""
        found = {}
        for number, (name, values) in enumerate(self._columns().items()):
            p50, p90, p99 = np.percentile(values, (50, 90, 99))
            found[name] = {
                "p50": float(p50),
                "p90": float(p90),
                "p99": float(p99),
                "max": self._most[number],
                "mean": self._sums[number] / self._result.num_ok,
            }
        return found

    def _add_sizes(self, sizes: tuple[float, float, float]) -> None:
        for number, size in enumerate(sizes):
            self._sums[number] += size
            if size > self._most[number]:
                self._most[number] = size
        if self._result.num_ok % self._stride:
            return
        if self._num_samples == len(self._samples):
            kept = self._samples[::2].copy()
            self._samples[: len(kept)] = kept
            self._num_samples = len(kept)
            self._stride *= 2
            if self._result.num_ok % self._stride:
                return
        self._samples[self._num_samples] = sizes
        self._num_samples += 1

    def _columns(self) -> dict[str, Values]:
        if not self._num_samples:
            return {}
        kept = self._samples[: self._num_samples]
        return {name: kept[:, number] for number, name in enumerate(_NAMES)}
