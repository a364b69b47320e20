"""Rows of Arrow data, shared by the formats that are tables."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from hpcserve.batch.durable import of_the_disk
from hpcserve.batch.files import unreadable
from hpcserve.batch.formats.base import BatchReader, MalformedRowError, RawRow, Scanned, Span
from hpcserve.errors import InputError

#: What is read of a table at a time.
BATCH_ROWS = 2048
#: What is made into Python objects at a time.
_PIECE_ROWS = 128


class TableReader(BatchReader):
    """A file of parts (row groups, record batches) that can each be read on their own.

    A span's place: its part, its first row within that, the file of it where there are several.
    A part that cannot be read makes errors of its own rows, and of no others.
    """

    is_table: ClassVar[bool] = True
    _cursor: _Cursor | None = None

    @abstractmethod
    def parts(self) -> Iterator[tuple[list[int], int]]:
        """Where each part is, and its number of rows. Raises InputError."""

    @abstractmethod
    def batches(self, part: list[int], columns: Sequence[str] | None) -> Iterator[Any]:
        """Record batches of one part, of some columns (None: all). Raises OSError, ArrowException."""

    @property
    @abstractmethod
    def schema(self) -> Any:
        """pyarrow.Schema. Raises InputError."""

    def scan(self, span_rows: int) -> Iterator[Scanned]:
        twice = [name for name, count in Counter(self.schema.names).items() if count > 1]
        if twice:
            raise InputError(f"the input {self.path} has the column {twice[0]!r} more than once")
        first = 0
        for part, num_rows in self.parts():
            ids = self._ids(part)
            for start in range(0, num_rows, span_rows):
                count = min(span_rows, num_rows - start)
                lines = range(first + start + 1, first + start + count + 1)
                span = Span(first + start, count, [*part, start])
                found = list(itertools.islice(ids, count))
                yield Scanned(span, found + [None] * (count - len(found)), lines)
            first += num_rows

    def rows(self, span: Span) -> Iterator[RawRow]:
        number = span.first_row
        bad: MalformedRowError | None = None
        try:
            for batch in self.table_of(span):
                for start in range(0, batch.num_rows, _PIECE_ROWS):
                    piece = _Piece(batch.slice(start, _PIECE_ROWS))
                    for place in range(piece.num_rows):
                        number += 1
                        yield RawRow(number, piece.row_bytes, (piece, place))
        except _broken() as error:
            self._refuse(error)
            bad = MalformedRowError("unreadable_row", f"{self.path}: {error}")
        end = span.first_row + span.num_rows
        if number < end:
            bad = bad or MalformedRowError("unreadable_row", f"{self.path}: rows are missing")
        for missing in range(number, end):
            yield RawRow(missing + 1, 0, bad)

    def _refuse(self, error: Exception) -> None:
        """Raise IncompleteRunError where the disk failed, and not the file is damaged."""
        if isinstance(error, OSError) and of_the_disk(error):
            self._cursor = None  # read anew, when it can be
            raise unreadable(self.path, error) from error

    def decode(self, row: RawRow) -> Mapping[str, Any]:
        if isinstance(row.payload, MalformedRowError):
            raise row.payload
        piece, place = row.payload
        record: Mapping[str, Any] = piece.record(place)
        return record

    def table_of(self, span: Span) -> Iterator[Any]:
        """The span's rows as record batches. Raises OSError and ArrowException."""
        *part, start = span.place
        cursor = self._cursor_at(part, start)
        left = span.num_rows
        while left and (batch := cursor.next(left)) is not None:
            left -= batch.num_rows
            yield batch

    def _cursor_at(self, part: list[int], start: int) -> _Cursor:
        """Spans come in order mostly: the part is read on where the last one ended."""
        cursor = self._cursor
        if cursor is None or cursor.part != part or cursor.position > start:
            cursor = _Cursor(part, self.batches(part, None))
            self._cursor = cursor
        cursor.skip_to(start)
        return cursor

    def _ids(self, part: list[int]) -> Iterator[Any]:
        """A part's names of rows, a batch at a time; they end where the part cannot be read."""
        names = [name for name in self.id_columns if name in self.schema.names]
        if not names:
            return
        try:
            for batch in self.batches(part, names):
                columns = [_values(batch.column(name)) for name in names]
                for values in zip(*columns, strict=True):
                    yield next((value for value in values if value is not None), None)
        except _broken() as error:
            self._refuse(error)  # else those rows become errors when they are read


def _values(column: Any) -> list[Any]:
    """A column's values; None for one that Python has no value for: its row fails for itself."""
    try:
        found: list[Any] = column.to_pylist()
    except ValueError:
        found = [_value(one, None) for one in column]
    return found


def _value(scalar: Any, otherwise: Any) -> Any:
    try:
        return scalar.as_py()
    except ValueError:
        return otherwise


class _Piece:
    """Some rows as Arrow has them, made into Python objects where they are wanted: that is what
    costs, and another process may do it."""

    def __init__(self, batch: Any) -> None:
        self._batch = batch
        self._records: list[dict[str, Any] | MalformedRowError] | None = None
        self.num_rows: int = batch.num_rows
        self.row_bytes: int = batch.nbytes // max(1, batch.num_rows)

    def record(self, place: int) -> dict[str, Any]:
        """Raises MalformedRowError."""
        if self._records is None:
            try:
                self._records = self._batch.to_pylist()
            except ValueError:  # one bad value must not fail the rows beside it
                self._records = [self._one_by_one(row) for row in range(self.num_rows)]
        found = self._records[place]
        if isinstance(found, MalformedRowError):
            raise found
        return found

    def _one_by_one(self, row: int) -> dict[str, Any] | MalformedRowError:
        record = {}
        for name, column in zip(self._batch.schema.names, self._batch.columns, strict=True):
            try:
                record[name] = column[row].as_py()
            except UnicodeDecodeError:
                return MalformedRowError("invalid_utf8", f"the column {name!r} is no UTF-8")
            except ValueError:  # nanoseconds, where the library for them is not there
                record[name] = _as_text(column[row])
        return record

    def __reduce__(self) -> tuple[Any, ...]:
        # Arrow's own pickling of a slice would take the whole batch along.
        return _unpickled, (
            self._batch.schema.serialize().to_pybytes(),
            self._batch.serialize().to_pybytes(),
        )


def _as_text(scalar: Any) -> str:
    import pyarrow as pa

    try:
        return str(scalar.cast(pa.string()).as_py())
    except pa.ArrowException:
        return str(scalar.type)


def _unpickled(schema: bytes, batch: bytes) -> _Piece:
    import pyarrow as pa

    return _Piece(pa.ipc.read_record_batch(batch, pa.ipc.read_schema(pa.py_buffer(schema))))


class _Cursor:
    def __init__(self, part: list[int], batches: Iterator[Any]) -> None:
        self.part = part
        self.position = 0
        self._batches = batches
        self._rest: Any = None

    def skip_to(self, position: int) -> None:
        while self.position < position and self.next(position - self.position) is not None:
            pass

    def next(self, most: int) -> Any:
        """A batch of `most` rows at most; None at the end."""
        while self._rest is None or not self._rest.num_rows:
            self._rest = next(self._batches, None)
            if self._rest is None:
                return None
        batch = self._rest.slice(0, most)
        self._rest = self._rest.slice(batch.num_rows)
        self.position += batch.num_rows
        return batch


def _broken() -> tuple[type[Exception], ...]:
    import pyarrow as pa

    return (OSError, pa.ArrowException)
