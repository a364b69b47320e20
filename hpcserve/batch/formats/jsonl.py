"""JSON Lines: one object per line."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

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

MAX_LINE_BYTES = 64 << 20

_BOM = b"\xef\xbb\xbf"


class Reader(BatchReader):
    """Lines end with \\n or \\r\\n; a byte-order mark is skipped, and so are blank lines.

    A span's place: the byte at which it starts (decompressed), its bytes, its first line.
    """

    def __init__(self, path: Path, *, id_column: str | None = None) -> None:
        super().__init__(path, id_column=id_column)
        self._source = ByteSource(path)
        names = dict(zip(("first", "second"), self.id_columns, strict=False))
        names |= {} if "url" in self.id_columns else {"url": "url"}
        fields = [(name, Any, None) for name in names]
        self._ids: Any = msgspec.json.Decoder(msgspec.defstruct("Ids", fields, rename=names))
        self._urls: Counter[str] = Counter()

    def scan(self, span_rows: int) -> Iterator[Scanned]:
        self.num_blank = 0
        self._urls = Counter()
        self._source.seek(0)
        first_row = start = crc = num_bytes = 0
        first_line = 1
        ids: list[Any] = []
        numbers: list[int] = []
        lines = lines_of(self._source, max_line_bytes=MAX_LINE_BYTES + 1)
        for number, (line, length) in enumerate(lines, start=1):
            crc = zlib.crc32(line, crc)
            num_bytes += length
            text = line.removeprefix(_BOM) if number == 1 else line
            if not text or text.isspace():
                self.num_blank += 1
                continue
            ids.append(self._id(text))
            numbers.append(number)
            if len(ids) == span_rows or num_bytes >= SPAN_BYTES:
                place = [start, num_bytes, first_line]
                yield Scanned(Span(first_row, len(ids), place, crc), ids, numbers, self._urls)
                first_row += len(ids)
                start += num_bytes
                first_line = number + 1
                crc = num_bytes = 0
                ids, numbers, self._urls = [], [], Counter()
        if ids:
            place = [start, num_bytes, first_line]
            yield Scanned(Span(first_row, len(ids), place, crc), ids, numbers, self._urls)

    def _id(self, line: bytes) -> Any:
        try:
            record = self._ids.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None  # the row's own error comes when it is decoded in full
        url = getattr(record, "url", None)
        if isinstance(url, str):
            self._urls[url] += 1
        return record.first if record.first is not None else getattr(record, "second", None)

    def rows(self, span: Span) -> Iterator[RawRow]:
        start, num_bytes, first_line = span.place
        self._source.seek(start)
        crc = 0
        found = []
        lines = lines_of(self._source, max_line_bytes=MAX_LINE_BYTES + 1, num_bytes=num_bytes)
        for number, (line, length) in enumerate(lines, start=first_line):
            crc = zlib.crc32(line, crc)
            if number == 1:
                line = line.removeprefix(_BOM)
            if line and not line.isspace():
                found.append(RawRow(number, length, line))
        if crc != span.crc:
            raise InputError(
                f"{self.path} has changed since the run began: lines from {first_line:,} on differ"
            )
        found.reverse()
        while found:  # none is kept longer than it is wanted
            yield found.pop()

    def decode(self, row: RawRow) -> Mapping[str, Any]:
        line: bytes = row.payload
        if len(line) > MAX_LINE_BYTES:
            raise MalformedRowError(
                "line_too_long",
                f"the line has {row.num_bytes:,} bytes; at most {MAX_LINE_BYTES:,} are read",
            )
        try:
            record = msgspec.json.decode(line)
        except UnicodeDecodeError as error:
            raise MalformedRowError("invalid_utf8", f"the line is no UTF-8: {error}") from None
        except msgspec.DecodeError as error:
            raise MalformedRowError("invalid_json_line", f"the line is no JSON: {error}") from None
        except RecursionError:
            raise MalformedRowError("invalid_json_line", "the JSON is nested too deeply") from None
        if not isinstance(record, dict):
            raise MalformedRowError("invalid_json_line", "the line holds no JSON object")
        return record

    def close(self) -> None:
        self._source.close()
