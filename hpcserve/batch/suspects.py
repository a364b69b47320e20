"""Finds the row that kills the engine, by halving the rows that were in flight when it died."""

from __future__ import annotations

from hpcserve.batch.row import BatchRow


class Suspects:
    """Groups of rows to be run each on its own, until every row in them has had its answer.

    A row is guilty that was alone in the engine when it died, and in it at an earlier death too:
    one death proves nothing, engines also die of other things.
    """

    def __init__(self) -> None:
        self._groups: list[list[BatchRow]] = []

    def __len__(self) -> int:
        return sum(map(len, self._groups))

    def engine_died(self, in_flight: list[BatchRow]) -> BatchRow | None:
        """Take in the rows that were running; returns the guilty one where that is certain now."""
        if len(in_flight) == 1 and in_flight[0].tries:
            return in_flight[0]
        for row in in_flight:
            row.tries += 1
        half = len(in_flight) // 2
        # The last one is taken first.
        self._groups += [part for part in (in_flight[half:], in_flight[:half]) if part]
        return None

    def next_group(self) -> list[BatchRow] | None:
        """Rows to run now, and nothing beside them; None where there is no suspicion."""
        return self._groups.pop() if self._groups else None

    def put_back(self, rows: list[BatchRow]) -> None:
        """They could not be tried: the run is ending."""
        if rows:
            self._groups.append(rows)
