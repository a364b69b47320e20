"""JSON Lines: one object per line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from hpcserve.batch.files import lines_of
from hpcserve.batch.formats.base import BatchReader, BatchWriter, MalformedRowError, RawRow

MAX_LINE_BYTES = 64 << 20

_BOM = b"\xef\xbb\xbf"


class Reader(BatchReader):
    """Lines end with \\n or \\r\\n; a byte-order mark is skipped, and so are blank lines."""

    def __iter__(self) -> Iterator[RawRow]:
        # One byte more than allowed is kept, which is how `decode` knows.
        lines = lines_of(self.source, max_line_bytes=MAX_LINE_BYTES + 1)
        for number, (line, num_bytes) in enumerate(lines, start=1):
            if number == 1:
                line = line.removeprefix(_BOM)
            if not line or line.isspace():
                self.num_blank += 1
            else:
                yield RawRow(number, num_bytes, line)

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


class Writer(BatchWriter):
    """One object per line, non-ASCII text as UTF-8."""

    def __init__(self) -> None:
        self._encoder = msgspec.json.Encoder()

    def encode(self, record: Mapping[str, Any]) -> bytes:
        return self._encoder.encode(record) + b"\n"
