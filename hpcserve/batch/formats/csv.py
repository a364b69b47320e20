"""CSV with a header line; quoted fields may hold line breaks."""

from __future__ import annotations

import csv
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hpcserve.batch.files import ByteSource, lines_of
from hpcserve.batch.formats.base import (
    SPAN_BYTES,
    BatchReader,
    MalformedRowError,
    RawRow,
    Scanned,
    Span,
)
from hpcserve.errors import InputError

MAX_FIELD_BYTES = 64 << 20

_BOM = b"\xef\xbb\xbf"


class Reader(BatchReader):
    """A span's place: the byte at which it starts (decompressed), its bytes, its first line.

    Empty fields are null; everything else is text.
    """

    def __init__(self, path: Path, *, id_column: str | None = None) -> None:
        super().__init__(path, id_column=id_column)
        self._source = ByteSource(path)
        self._header: list[str] | None = None
        csv.field_size_limit(MAX_FIELD_BYTES)

    def scan(self, span_rows: int) -> Iterator[Scanned]:
        self.num_blank = 0
        lines = self._start()
        first_row, start, first_line = 0, lines.num_bytes, lines.number + 1
        lines.crc = 0
        ids: list[Any] = []
        numbers: list[int] = []
        place: list[int] = []
        for line, fields in self._records(lines):
            if not fields:
                self.num_blank += 1
                continue
            ids.append(self._id(fields))
            numbers.append(line)
            place = [start, lines.num_bytes - start, first_line]
            if len(ids) == span_rows or place[1] >= SPAN_BYTES:
                yield Scanned(Span(first_row, len(ids), place, lines.crc), ids, numbers)
                first_row += len(ids)
                start, first_line = lines.num_bytes, lines.number + 1
                lines.crc = 0
                ids, numbers = [], []
        if ids:
            place = [start, lines.num_bytes - start, first_line]
            yield Scanned(Span(first_row, len(ids), place, lines.crc), ids, numbers)

    def rows(self, span: Span) -> Iterator[RawRow]:
        if self._header is None:
            self._start()
        start, num_bytes, first_line = span.place
        self._source.seek(start)
        lines = _Lines(self._source, num_bytes, first_line - 1)
        found = []
        before = 0
        for line, fields in self._records(lines):
            if fields:
                found.append(RawRow(line, lines.num_bytes - before, fields))
            before = lines.num_bytes
        if lines.crc != span.crc:
            raise InputError(
                f"{self.path} has changed since the run began: lines from {first_line:,} on differ"
            )
        found.reverse()
        while found:  # none is kept longer than it is wanted
            yield found.pop()

    def decode(self, row: RawRow) -> Mapping[str, Any]:
        header, fields = self._header or [], row.payload
        if len(fields) != len(header):
            raise MalformedRowError(
                "wrong_columns", f"the row has {len(fields)} fields, the header {len(header)}"
            )
        try:
            for field in fields:
                field.encode()
        except UnicodeEncodeError:
            raise MalformedRowError("invalid_utf8", "the row is no UTF-8") from None
        return {name: value or None for name, value in zip(header, fields, strict=True)}

    def close(self) -> None:
        self._source.close()

    def _start(self) -> _Lines:
        """Behind the header."""
        self._source.seek(0)
        lines = _Lines(self._source, None, 0)
        for _, fields in self._records(lines):
            if fields:
                self._header = self._checked(fields)
                return lines
        raise InputError(f"the input {self.path} has no header line")

    def _checked(self, header: list[str]) -> list[str]:
        """Raises InputError for names that could not be told apart, or are no text."""
        try:
            ",".join(header).encode()
        except UnicodeEncodeError:
            raise InputError(f"the header line of {self.path} is no UTF-8") from None
        twice = sorted({name for name in header if name and header.count(name) > 1})
        if twice:
            raise InputError(f"the header line of {self.path} has {twice[0]!r} more than once")
        return header

    def _records(self, lines: _Lines) -> Iterator[tuple[int, list[str]]]:
        """First line and fields of each record; csv takes no more lines than it needs."""
        reader = csv.reader(lines, strict=True)
        while True:
            first = lines.number + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise InputError(f"{self.path} line {first}: {error}") from error
            yield first, fields

    def _id(self, fields: list[str]) -> str | None:
        named = dict(zip(self._header or [], fields, strict=False))
        return next((named[name] for name in self.id_columns if named.get(name)), None)


class _Lines:
    """Lines as text, counted."""

    def __init__(self, source: ByteSource, num_bytes: int | None, number: int) -> None:
        self._lines = lines_of(source, max_line_bytes=MAX_FIELD_BYTES, num_bytes=num_bytes)
        self.number = number
        self.num_bytes = 0
        self.crc = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line, length = next(self._lines)
        self.number += 1
        self.num_bytes += length
        self.crc = zlib.crc32(line, self.crc)
        if length > MAX_FIELD_BYTES + 1:
            raise csv.Error(f"the line has {length:,} bytes; at most {MAX_FIELD_BYTES:,} are read")
        if self.number == 1:
            line = line.removeprefix(_BOM)
        # What is no UTF-8 is kept, and refused when its row is decoded.
        return line.decode(errors="surrogateescape") + "\n"
