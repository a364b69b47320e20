"""In which order rows of the window go to the engine; the output's order does not depend on it."""

from __future__ import annotations

from collections.abc import Sequence

from hpcserve.batch.row import BatchRow


def admission_order(rows: Sequence[BatchRow], *, is_last: bool) -> list[BatchRow]:
    """Rows that begin alike side by side, so that the radix cache computes their beginning once.

    Of the last rows of a run the longest go first: one that started last would run alone at the
    end, with the engine empty beside it. Rows that failed already cost nothing, and go first.
    """
    failed = [row for row in rows if row.failure is not None]
    asked = [row for row in rows if row.failure is None]
    if is_last:
        asked.sort(key=lambda row: -row.request.num_tokens)
    else:
        asked.sort(key=lambda row: row.request.prefix)
    return failed + asked
