"""What a run has done: counted while it runs, and what its files say at its end."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

import msgspec

from hpcserve.batch.engine import RowAnswer
from hpcserve.batch.row import BatchRow, Failure

_MAX_COLUMNS = 50


@dataclass
class BatchReport:
    """Counts of one run.

    errors: failed rows by code.  first_failure: line and message of the first one in the input.
    unused: columns of plain rows that mean nothing here -> rows that have them.
    other_models: models that rows name but this run does not serve -> rows.
    num_total: rows of the whole run.  num_before: of them, finished before this began.
    num_recovered: of them, from journals of shards that were not finished.
    """

    num_ok: int = 0
    num_failed: int = 0
    num_blank: int = 0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_cached_tokens: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    first_failure: tuple[int, str] | None = None
    unused: Counter[str] = field(default_factory=Counter)
    other_models: Counter[str] = field(default_factory=Counter)
    num_total: int = 0
    num_before: int = 0
    num_retries: int = 0
    num_quarantined: int = 0
    num_engine_deaths: int = 0
    num_recovered: int = 0
    started_s: float = field(default_factory=time.perf_counter)
    ended_s: float | None = None

    @property
    def num_rows(self) -> int:
        return self.num_ok + self.num_failed

    @property
    def wall_s(self) -> float:
        return (self.ended_s or time.perf_counter()) - self.started_s

    @property
    def output_tokens_per_s(self) -> float:
        return self.num_output_tokens / max(self.wall_s, 1e-9)

    @property
    def cache_hit_rate(self) -> float:
        """Share of the prompts' tokens whose KV was reused, 0 to 1."""
        return self.num_cached_tokens / max(self.num_prompt_tokens, 1)

    def add_row(self, row: BatchRow) -> None:
        """A row was read."""
        for column in row.unused:
            if column in self.unused or len(self.unused) < _MAX_COLUMNS:
                self.unused[column] += 1

    def add_model(self, name: object, served: frozenset[str]) -> None:
        """A row names a model."""
        if not isinstance(name, str) or not name or name in served:
            return
        if name in self.other_models or len(self.other_models) < _MAX_COLUMNS:
            self.other_models[name] += 1

    def add_answer(self, row: BatchRow, answer: RowAnswer) -> None:
        self.num_ok += 1
        self.num_prompt_tokens += answer.num_prompt_tokens
        self.num_output_tokens += answer.num_output_tokens
        self.num_cached_tokens += answer.num_cached_tokens

    def add_failure(self, row: BatchRow, failure: Failure) -> None:
        self.num_failed += 1
        self.errors[failure.code] += 1
        if self.first_failure is None or row.line < self.first_failure[0]:
            self.first_failure = (row.line, failure.message)

    @property
    def num_finished(self) -> int:
        """Rows of the run that are finished, by whomever, as far as this worker knows."""
        return self.num_before + self.num_rows

    @property
    def fraction_done(self) -> float | None:
        """0 to 1 of the run."""
        return min(1.0, self.num_finished / self.num_total) if self.num_total else None

    @property
    def seconds_left(self) -> float | None:
        """At the speed so far; None where it cannot be told."""
        if not self.num_rows or not self.num_total:
            return None
        left = max(0, self.num_total - self.num_finished)
        return self.wall_s * left / self.num_rows


class RunResult(msgspec.Struct, kw_only=True):
    """A finished run, all its workers together; also report.json.

    percentiles: name -> {"p50": ..., "p90": ..., "p99": ..., "max": ...} over answered rows.
    active_s: seconds in which a worker ran.  gpu_hours: of GPUs that an engine held.
    joules: None where no GPU told.  first_failure: line (or file and line) and message.
    """

    num_rows: int = 0
    num_ok: int = 0
    num_failed: int = 0
    num_quarantined: int = 0
    num_blank: int = 0
    num_retries: int = 0
    num_engine_deaths: int = 0
    num_runs: int = 0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_cached_tokens: int = 0
    errors: dict[str, int] = {}
    first_failure: tuple[int, str] | None = None
    unused: dict[str, int] = {}
    other_models: dict[str, int] = {}
    percentiles: dict[str, dict[str, float]] = {}
    active_s: float = 0.0
    gpu_hours: float = 0.0
    joules: float | None = None

    @property
    def wall_s(self) -> float:
        return self.active_s

    @property
    def output_tokens_per_s(self) -> float:
        return self.num_output_tokens / max(self.active_s, 1e-9)

    @property
    def cache_hit_rate(self) -> float:
        return self.num_cached_tokens / max(self.num_prompt_tokens, 1)
