"""What failed rows mean for the run: retried, written down, or its end."""

from __future__ import annotations

import random
from dataclasses import dataclass

from hpcserve.batch.report import BatchReport
from hpcserve.batch.row import BatchRow, Failure
from hpcserve.errors import RowsFailedError

#: The run is not ended by the rate of its first few rows.
_MIN_ROWS = 100
#: What a server says when trying again may help.
_MAY_PASS = frozenset({408, 425, 429, 500, 502, 503, 504})
_FIRST_WAIT_S = 0.25
_LONGEST_WAIT_S = 30.0


@dataclass(frozen=True)
class FailurePolicy:
    """mode: inline, file or fail.  max_error_rate: 0 to 1.  retries: after the first try."""

    mode: str = "inline"
    max_error_rate: float = 1.0
    retries: int = 3

    def wait_before_retry(self, failure: Failure, attempts: int) -> float | None:
        """Seconds to wait, with some chance in it; None: the failure stands."""
        if attempts > self.retries or failure.status not in _MAY_PASS:
            return None
        longest: float = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** (attempts - 1))
        return longest * random.uniform(0.5, 1.0)

    def before_failure(self, row: BatchRow, failure: Failure) -> None:
        """Raise RowsFailedError where one failed row is too many; it is not written down, so that
        the run can go on with it when its cause is mended."""
        if self.mode == "fail":
            raise RowsFailedError(
                f"line {row.line} failed ({failure.code}: {failure.message}), and --errors fail "
                "ends the run with the first; finished rows are kept"
            )

    def after_failure(self, report: BatchReport, num_pending: int) -> None:
        """Raise RowsFailedError where too many rows have failed, even if those that are read but
        not answered yet (`num_pending`) were all to be answered well: errors come first."""
        num_rows = report.num_rows + num_pending
        if num_rows >= _MIN_ROWS and report.num_failed > self.max_error_rate * num_rows:
            line, message = report.first_failure or (0, "in an earlier run")
            raise RowsFailedError(
                f"{report.num_failed:,} of {report.num_rows:,} rows failed, more than "
                f"--max-error-rate {self.max_error_rate:g} allows; the first is line {line}: "
                f"{message}. `hpcserve batch retry-errors` answers them again"
            )
