"""The contract of a batch format: what a file's rows are, and where each stretch of them lies.

A format is one module of this package, named as the ending of its files, with a class `Reader`.
A file is scanned once, in order, which cuts it into spans; spans are then read in any order, by
any worker. Reading is cheap; `decode` may be slow, runs in several threads at once, and is where
a row turns out to be malformed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import msgspec

#: A shard also ends after so many bytes, so that long rows do not make it endless.
SPAN_BYTES = 64 << 20


class Span(msgspec.Struct, frozen=True, array_like=True):
    """A stretch of a file's rows.

    first_row: the number of its first row in the file, from 0.  place: where the format finds it.
    crc: of its bytes, where the format reads bytes.
    """

    first_row: int
    num_rows: int
    place: list[int]
    crc: int = 0


class RawRow(msgspec.Struct, frozen=True):
    """One row as it lies in the input.

    line: where a user finds it, from 1.  num_bytes: its share of the input.
    """

    line: int
    num_bytes: int
    payload: Any


@dataclass(frozen=True, slots=True)
class Scanned:
    """A span and its rows' names: ids[i] as the input gives it (None: none, or unreadable).

    urls: how many rows name which url, as far as a look at the row tells.
    """

    span: Span
    ids: Sequence[Any]
    lines: Sequence[int]
    urls: Mapping[str, int] = field(default_factory=dict)


class MalformedRowError(ValueError):
    """This row cannot be decoded; it becomes an error line of the output."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)  # both, so that it can be pickled
        self.code = code
        self.message = message


class BatchReader(ABC):
    """Rows of one input file.

    id_column: the column that names rows; None: `custom_id`, or `id`.
    """

    #: Rows without content, which are no rows of the batch, that the scan has met.
    num_blank = 0
    #: Whether columns keep types that JSON does not have.
    is_table: ClassVar[bool] = False

    def __init__(self, path: Path, *, id_column: str | None = None) -> None:
        self.path = path
        self.id_columns = ("custom_id", "id") if id_column is None else (id_column,)

    @abstractmethod
    def scan(self, span_rows: int) -> Iterator[Scanned]:
        """Every row of the file once, in spans. Raises InputError where it cannot be read."""

    @abstractmethod
    def rows(self, span: Span) -> Iterator[RawRow]:
        """Raises InputError where the span cannot be read, or is no longer what was scanned: before
        the first row, so that none of a changed file is answered."""

    @abstractmethod
    def decode(self, row: RawRow) -> Mapping[str, Any]:
        """The row's fields. Raises MalformedRowError."""

    def close(self) -> None:  # noqa: B027 - most formats keep nothing open
        """Let go of the file."""
