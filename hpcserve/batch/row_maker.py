"""Rows as they lie in the input, made ready for the engine: in a thread, or in another process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hpcserve.batch.engine import PreparerRecipe, RowPreparer
from hpcserve.batch.formats.base import BatchReader, MalformedRowError, RawRow
from hpcserve.batch.inputs import InputFile
from hpcserve.batch.row import BatchRow, Failure, RowDialect
from hpcserve.errors import EngineError, HpcserveError

#: What a row can bring about in the code that reads it; anything else is a defect and ends the run.
ROW_ERRORS = (HpcserveError, ValueError, TypeError, LookupError, RecursionError)


@dataclass(frozen=True)
class RawChunk:
    """Some rows of one file.

    first: number among all rows of the run of the shard's first row.
    rows: a row's number within its shard, and the row.
    """

    file: int
    first: int
    rows: Sequence[tuple[int, RawRow]]


class RowMaker:
    """Decodes, fills in templates and parameters, and tokenises; safe in several threads."""

    def __init__(
        self, readers: Sequence[BatchReader], dialect: RowDialect, preparer: RowPreparer
    ) -> None:
        self._readers = readers
        self._dialect = dialect
        self._preparer = preparer

    def rows(self, chunk: RawChunk) -> list[BatchRow]:
        """What is wrong with a row becomes its failure."""
        return [self._row(chunk, number, raw) for number, raw in chunk.rows]

    def _row(self, chunk: RawChunk, number: int, raw: RawRow) -> BatchRow:
        row = blank_row(chunk, number, raw)
        try:
            self._dialect.fill(row, self._readers[chunk.file].decode(raw))
            if row.failure is None:
                row.request = self._preparer.prepare(row.url, row.body)
        except EngineError:
            raise
        except MalformedRowError as error:
            row.failure = Failure(error.code, error.message)
        except ROW_ERRORS as error:
            row.failure = Failure.of(error)
        row.body = {}
        return row


def blank_row(chunk: RawChunk, number: int, raw: RawRow) -> BatchRow:
    """A row of which only its place is known."""
    return BatchRow(chunk.first + number, chunk.file, raw.line, raw.num_bytes, None, number)


@dataclass(frozen=True)
class MakerRecipe:
    """What another process needs to make rows as this one does; can be pickled."""

    inputs: Sequence[InputFile]
    id_column: str | None
    dialect: RowDialect
    preparer: PreparerRecipe

    def make(self) -> RowMaker:
        """Raises ModelError and TokenizerError."""
        readers = [one.reader(self.id_column) for one in self.inputs]
        return RowMaker(readers, self.dialect, self.preparer.make())
