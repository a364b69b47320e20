"""Bytes of input files: gz and zst by their ending, read from any place, in lines."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import zstandard

from hpcserve.batch.durable import of_the_disk
from hpcserve.errors import HpcserveError, IncompleteRunError, InputError

STANDARD = "-"
COMPRESSED = (".gz", ".zst")
_SKIP_BYTES = 1 << 20
#: Read at a time of a packed file: what comes of it is held, and may be a thousand times as much.
_ZST_BYTES = 1 << 11


def format_suffix(name: str) -> str:
    """The ending that names the format: `rows.jsonl.gz` is jsonl."""
    path = Path(name)
    if path.suffix in COMPRESSED:
        path = path.with_suffix("")
    return path.suffix.lstrip(".").lower()


def unreadable(path: Path, error: Exception) -> HpcserveError:
    """What to raise for an input: its disk's failure ends the run until that is mended, its own is
    the user's to know."""
    why = (error.strerror if isinstance(error, OSError) else None) or str(error)
    if isinstance(error, OSError) and of_the_disk(error):
        return IncompleteRunError(
            f"cannot read the input {path}: {why}; finished rows are kept: run the same command "
            "again when this is mended"
        )
    return InputError(f"cannot read the input {path}: {why}")


class ByteSource:
    """A file's bytes, decompressed. Going back in a compressed file means starting it again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = 0
        self._raw: BinaryIO | None = None
        self._stream: BinaryIO | None = None

    def seek(self, position: int) -> None:
        """Go to a byte of the decompressed file. Raises InputError."""
        if self._stream is None or (position < self.position and self._is_compressed):
            self._open()
        if not self._is_compressed:
            cast(BinaryIO, self._stream).seek(position)
            self.position = position
        while self.position < position:
            if not self.read(min(_SKIP_BYTES, position - self.position)):
                raise InputError(f"{self.path} has become shorter since it was scanned")

    def read(self, size: int) -> bytes:
        """The next bytes, `size` at most; b"" at the end. Raises InputError (damaged, I/O)."""
        if self._stream is None:
            self._open()
        try:
            data = cast(BinaryIO, self._stream).read(size)
        except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
            raise unreadable(self.path, error) from error
        self.position += len(data)
        return data

    def close(self) -> None:
        for stream in (self._stream, self._raw):
            if stream is not None:
                stream.close()
        self._raw = self._stream = None

    @property
    def _is_compressed(self) -> bool:
        return self.path.suffix in COMPRESSED

    def _open(self) -> None:
        self.close()
        try:
            self._raw = self.path.open("rb")
        except OSError as error:
            raise unreadable(self.path, error) from error
        self._stream = _decompressed(self._raw, self.path.suffix)
        self.position = 0


def _decompressed(raw: BinaryIO, suffix: str) -> BinaryIO:
    if suffix == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    if suffix == ".zst":
        return cast(BinaryIO, _ZstFrames(raw))
    return raw


class _ZstFrames:
    """Frames one behind the other. The library's own reader takes a frame that is cut off for the
    end of the file, and so would lose rows."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._decompressor = zstandard.ZstdDecompressor()
        self._frame: Any = None
        self._packed = b""
        self._plain = memoryview(b"")

    def read(self, size: int) -> bytes:
        """The next bytes, `size` at most; b"" at the end. Raises EOFError, ZstdError, OSError."""
        while not self._plain and self._unpack_more():
            pass
        data, self._plain = bytes(self._plain[:size]), self._plain[size:]
        return data

    def close(self) -> None:
        self._plain = memoryview(b"")

    def _unpack_more(self) -> bool:
        """False at the end of the file."""
        self._packed = self._packed or self._raw.read(_ZST_BYTES)
        if not self._packed:
            if self._frame is not None:
                raise EOFError("the file ends before the end of its last frame")
            return False
        self._frame = self._frame or self._decompressor.decompressobj()
        self._plain = memoryview(self._frame.decompress(self._packed))
        self._packed = b""
        if self._frame.eof:
            self._packed, self._frame = self._frame.unused_data, None
        return True


def lines_of(
    source: ByteSource,
    *,
    max_line_bytes: int,
    num_bytes: int | None = None,
    block_bytes: int = 1 << 18,
) -> Iterator[tuple[bytes, int]]:
    """Every line of the next `num_bytes` (None: of the rest) without its newline, and its length
    in bytes with it.

    Only \\n ends a line: JSON may hold U+2028 and its kin. Of a line longer than
    `max_line_bytes` the first bytes are given, so that memory stays bounded; its length tells.
    """
    pending = io.BytesIO()
    length = 0
    for block in _blocks(source, num_bytes, block_bytes):
        *complete, rest = block.split(b"\n")
        for part in complete:
            if length:
                pending.write(part[: max(0, max_line_bytes - pending.tell())])
                yield pending.getvalue(), length + len(part) + 1
                pending = io.BytesIO()
                length = 0
            else:
                yield part[:max_line_bytes], len(part) + 1
        pending.write(rest[: max(0, max_line_bytes - pending.tell())])
        length += len(rest)
    if length:
        yield pending.getvalue(), length


def _blocks(source: ByteSource, num_left: int | None, block_bytes: int) -> Iterator[bytes]:
    while num_left is None or num_left > 0:
        block = source.read(block_bytes if num_left is None else min(block_bytes, num_left))
        if not block:
            return
        if num_left is not None:
            num_left -= len(block)
        yield block
