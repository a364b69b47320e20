"""Opening what is read and what is written: gz and zst, stdin and stdout, all or nothing."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import zstandard

from hpcserve.errors import InputError, OutputError

STANDARD = "-"
PARTIAL_SUFFIX = ".partial"
_COMPRESSED = (".gz", ".zst")


class ByteSink(Protocol):
    """Where finished lines go."""

    #: Where they can be found now, for messages.
    place: str

    def write(self, data: bytes) -> None: ...

    def commit(self) -> None:
        """All lines are there: make them the output."""

    def keep(self) -> None:
        """The run ends early: what is there stays at `place`."""


def format_suffix(name: str) -> str:
    """The ending that names the format: `rows.jsonl.gz` is jsonl."""
    path = Path(name)
    if path.suffix in _COMPRESSED:
        path = path.with_suffix("")
    return path.suffix.lstrip(".").lower()


def check_paths(input_name: str, output_name: str, *, overwrite: bool) -> None:
    """Raise InputError or OutputError for what would fail later, before a model is loaded."""
    if input_name != STANDARD:
        _check_input(Path(input_name))
    if output_name == STANDARD:
        return
    output = Path(output_name)
    if not output.parent.is_dir():
        raise OutputError(f"there is no folder {output.parent} for the output {output}")
    if input_name != STANDARD and output.exists() and output.samefile(input_name):
        raise OutputError(f"input and output are the same file: {output}")
    if output.is_dir():
        raise OutputError(f"the output {output} is a folder; name a file")
    if _is_special(output):
        return
    if output.exists() and not overwrite:
        raise OutputError(f"the output {output} exists; pass --overwrite to replace it")
    partial = partial_path(output)
    if partial.exists() and not overwrite:
        raise OutputError(
            f"{partial} holds rows that an earlier run finished; move it away, or pass --overwrite"
        )
    if not os.access(output.parent, os.W_OK):
        raise OutputError(f"the output folder {output.parent} is not writable")


def _check_input(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"the input {path} is a folder; name a file")
    if not path.exists():
        raise InputError(f"there is no input file {path}")
    # Not by opening it: a pipe's writer would take that for its reader, and its end.
    if not os.access(path, os.R_OK):
        raise InputError(f"cannot read the input {path}: Permission denied")
    if path.is_file() and path.stat().st_size == 0:
        raise InputError(f"the input {path} is empty")


class InputFile:
    """An input, decompressed by its ending, that knows how long it is."""

    def __init__(self, name: str) -> None:
        self.name = "stdin" if name == STANDARD else name
        self._size = 0
        try:
            self._raw = _opened(name)
            if Path(name).is_file():
                self._size = Path(name).stat().st_size
        except OSError as error:
            raise InputError(f"cannot read the input {name}: {error.strerror}") from error
        self._stream = _decompressed(self._raw, Path(name).suffix)
        self._is_compressed = self._stream is not self._raw

    def total_bytes(self, num_read: int) -> float | None:
        """Decompressed size, judged by the `num_read` bytes so far where it is compressed; None
        where it cannot be known."""
        if not self._is_compressed or not self._size:
            return self._size or None
        position = 0 if self._raw.closed else self._raw.tell()
        return num_read * self._size / position if position else None

    def read(self, size: int) -> bytes:
        """What is there, up to `size` bytes; b"" at the end. Raises InputError (damaged, I/O)."""
        try:
            # A pipe gives what it has; read() would wait until `size` bytes have come.
            data: bytes = getattr(self._stream, "read1", self._stream.read)(size)
        except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
            raise InputError(f"cannot read on in {self.name}: {error}") from error
        return data

    def close(self) -> None:
        if self._raw is not sys.stdin.buffer:
            self._raw.close()


def _opened(name: str) -> BinaryIO:
    return _stdin() if name == STANDARD else Path(name).open("rb")


def _stdin() -> BinaryIO:
    """Unbuffered: a thread that still waits for input must not hold the lock of sys.stdin's
    buffer when the process ends."""
    try:
        return cast(BinaryIO, io.FileIO(sys.stdin.fileno(), "rb", closefd=False))
    except io.UnsupportedOperation:
        return sys.stdin.buffer


def _decompressed(raw: BinaryIO, suffix: str) -> BinaryIO:
    if suffix == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    if suffix == ".zst":
        reader = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
        return cast(BinaryIO, reader)
    return raw


def partial_path(output: Path) -> Path:
    """Where an output is written before it is complete: beside it, so that a rename is atomic."""
    return output.with_name(output.name + PARTIAL_SUFFIX)


def open_output(name: str, *, overwrite: bool) -> ByteSink:
    """Raises OutputError where it cannot be opened, or another run is writing it."""
    if name == STANDARD:
        return _StreamSink(sys.stdout.buffer, "stdout")
    path = Path(name)
    try:
        if _is_special(path):
            return _StreamSink(cast(BinaryIO, path.open("wb")), name)
        return _FileSink(path, overwrite=overwrite)
    except FileExistsError:
        raise OutputError(
            f"{partial_path(path)} exists: another run is writing this output, or was ended"
        ) from None
    except OSError as error:
        raise OutputError(f"cannot write the output {path}: {error.strerror}") from error


def _is_special(path: Path) -> bool:
    """A pipe or a device such as /dev/null: nothing to rename."""
    return path.exists() and not path.is_file()


class _StreamSink:
    """stdout, a pipe, a device."""

    def __init__(self, stream: BinaryIO, place: str) -> None:
        self._stream = stream
        self.place = place

    def write(self, data: bytes) -> None:
        self._stream.write(data)
        self._stream.flush()

    def commit(self) -> None:
        if self._stream is not sys.stdout.buffer:
            self._stream.close()

    keep = commit


class _FileSink:
    """A file that appears under its name only when it is complete and on the disk."""

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        self._path = path
        self._partial = partial_path(path)
        self.place = str(self._partial)
        self._file = _WholeWrites(self._partial.open("wb" if overwrite else "xb", buffering=0))
        self._stream = _compressing(self._file, path.suffix)

    def write(self, data: bytes) -> None:
        before = self._file.tell()
        try:
            self._stream.write(data)
        except OSError:
            # A part may have been written: leave whole lines only.
            self._file.truncate(before)
            raise

    def commit(self) -> None:
        self._end()
        self._partial.replace(self._path)
        _sync_folder(self._path.parent)
        self.place = str(self._path)

    def keep(self) -> None:
        # The run is ending for a reason of its own; a second failure here must not hide it.
        with contextlib.suppress(OSError):
            self._end()
            if self._partial.stat().st_size == 0:
                self._partial.unlink()

    def _end(self) -> None:
        try:
            if self._stream is not self._file:
                self._stream.close()
            os.fsync(self._file.fileno())
        finally:
            self._file.close()


class _WholeWrites(io.RawIOBase):
    """An unbuffered file whose writes are complete, or raise: a raw one may take a part only."""

    def __init__(self, raw: io.FileIO) -> None:
        self._raw = raw

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        while view:
            view = view[self._raw.write(view) :]
        return len(data)

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._raw.tell()

    def truncate(self, size: int | None = None) -> int:
        self._raw.seek(self._raw.truncate(size))
        return self._raw.tell()

    def fileno(self) -> int:
        return self._raw.fileno()

    def close(self) -> None:
        self._raw.close()
        super().close()


def _compressing(raw: _WholeWrites, suffix: str) -> _WholeWrites:
    stream: Any = raw
    if suffix == ".gz":
        stream = gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0)
    elif suffix == ".zst":
        stream = zstandard.ZstdCompressor().stream_writer(cast(BinaryIO, raw), closefd=False)
    return cast(_WholeWrites, stream)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lines_of(
    source: InputFile, *, block_bytes: int = 1 << 18, max_line_bytes: int
) -> Iterator[tuple[bytes, int]]:
    """Every line without its newline, and its length in bytes with it.

    Only \\n ends a line: JSON may hold U+2028 and its kin. Of a line longer than
    `max_line_bytes` the first bytes are given, so that memory stays bounded; its length tells.
    """
    pending = io.BytesIO()
    length = 0
    while block := source.read(block_bytes):
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
