"""JSON Lines, compressed where the file's ending says so."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec
import zstandard

from hpcserve.batch.files import ByteSource, lines_of
from hpcserve.batch.journal import RowRecord
from hpcserve.batch.manifest import Manifest
from hpcserve.batch.writers.base import RowWriter
from hpcserve.errors import InputError

_BUFFER_BYTES = 1 << 18


class Writer(RowWriter):
    """One object per line, non-ASCII text as UTF-8."""

    def __init__(self, temporary: Path, final: Path, manifest: Manifest) -> None:
        super().__init__(temporary, final, manifest)
        self._raw = temporary.open("xb", buffering=_BUFFER_BYTES)
        self._stream: BinaryIO = self._raw
        if final.suffix == ".gz":
            # No name and no time: the same rows are the same bytes.
            packed = gzip.GzipFile(filename="", fileobj=self._raw, mode="wb", mtime=0)
            self._stream = cast(BinaryIO, packed)
        elif final.suffix == ".zst":
            stream = zstandard.ZstdCompressor().stream_writer(self._raw, closefd=False)
            self._stream = cast(BinaryIO, stream)

    def write(self, shard: int, record: RowRecord) -> None:
        self._stream.write(record.payload + b"\n")

    def complete(self) -> None:
        if self._stream is not self._raw:
            self._stream.close()
        self._raw.flush()
        os.fsync(self._raw.fileno())

    def close(self) -> None:
        self._raw.close()


class _Names(msgspec.Struct):
    id: Any = None
    custom_id: Any = None


def names(path: Path) -> Iterator[tuple[str, Any, Any]]:
    """Place, id and custom_id of every line. Raises InputError where it cannot be read."""
    source = ByteSource(path)
    decoder = msgspec.json.Decoder(_Names)
    for number, (line, _) in enumerate(lines_of(source, max_line_bytes=1 << 30), start=1):
        try:
            record = decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path} line {number} is no JSON: {error}") from None
        yield f"line {number}", record.id, record.custom_id
    source.close()
