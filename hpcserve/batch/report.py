"""What a run has done so far: counted while it runs, shown at its end."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from hpcserve.batch.engine import RowAnswer
from hpcserve.batch.row import BatchRow, Failure

_MAX_COLUMNS = 50


@dataclass
class BatchReport:
    """Counts of one run.

    errors: failed rows by code.  first_failure: line and message of the first one in the input.
    unused: columns of plain rows that mean nothing here -> rows that have them.
    other_models: models that rows name but this run does not serve -> rows.
    bytes_read, bytes_finished: of the input, decompressed.
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
    bytes_read: int = 0
    bytes_finished: int = 0
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
        self.bytes_read += row.num_bytes
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
        self.bytes_finished += row.num_bytes
        self.num_prompt_tokens += answer.num_prompt_tokens
        self.num_output_tokens += answer.num_output_tokens
        self.num_cached_tokens += answer.num_cached_tokens

    def add_failure(self, row: BatchRow, failure: Failure) -> None:
        self.num_failed += 1
        self.bytes_finished += row.num_bytes
        self.errors[failure.code] += 1
        if self.first_failure is None or row.line < self.first_failure[0]:
            self.first_failure = (row.line, failure.message)

    def fraction_done(self, total_bytes: float | None) -> float | None:
        """0 to 1 of the run, where the input's size is known."""
        if not total_bytes:
            return None
        return min(1.0, self.bytes_finished / total_bytes)

    def seconds_left(self, total_bytes: float | None) -> float | None:
        """At the speed so far; None where it cannot be told."""
        done = self.fraction_done(total_bytes)
        if not done:
            return None
        return self.wall_s * (1.0 - done) / done
