"""Finished rows on the disk: a file of records, each with its length and checksum.

    file   := MAGIC run-id(16) shard(u32)  record*
    record := length(u32) crc32(u32) body
    body   := FIELDS payload

A record that is not whole ends the file: whatever a crash left behind it (half a record, half a
character, NULs) is cut off. Committed shards have the same shape, with a summary in front.
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

import msgspec

MAGIC = b"hpcsrvJ1"
HEADER = struct.Struct("<8s16sI")
_FRAME = struct.Struct("<II")
_FIELDS = struct.Struct("<IBBHIIIff")

#: Status of a record.
OK, FAILED, QUARANTINED = 0, 1, 2
#: Not an answer: the row was ended, unfinished, after `latency_s` by the end of the run's time.
CUT_SHORT = 3
#: The first record of a committed shard.
SUMMARY = 9
SUMMARY_ROW = 0xFFFFFFFF


class DamagedShardError(Exception):
    """A committed shard is not whole; whoever reads it decides what that means."""


class RowRecord(msgspec.Struct, frozen=True):
    """row: within its shard.  payload: the row's line of the output, as JSON without a newline.

    latency_s: from the engine's taking the row to its answer.  finished_s: time of day of the
    answer, in seconds of the epoch modulo 2**24 (a float32 keeps them to the second).
    """

    row: int
    status: int
    payload: bytes
    attempts: int = 1
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_cached_tokens: int = 0
    latency_s: float = 0.0
    waited_s: float = 0.0

    def pack(self) -> bytes:
        """The record as it lies in a file."""
        fields = _FIELDS.pack(
            self.row,
            self.status,
            min(self.attempts, 255),
            0,
            self.num_prompt_tokens,
            self.num_output_tokens,
            self.num_cached_tokens,
            self.latency_s,
            self.waited_s,
        )
        crc = zlib.crc32(self.payload, zlib.crc32(fields))
        return _FRAME.pack(len(fields) + len(self.payload), crc) + fields + self.payload


def unpack(data: bytes) -> RowRecord:
    """One record from its bytes. Raises ValueError where they are not whole."""
    length, crc = _FRAME.unpack_from(data)
    if length < _FIELDS.size or len(data) != _FRAME.size + length:
        raise ValueError("wrong length")
    body = memoryview(data)[_FRAME.size :]
    if zlib.crc32(body) != crc:
        raise ValueError("wrong checksum")
    row, status, attempts, _, prompt, output, cached, latency_s, waited_s = _FIELDS.unpack_from(
        body
    )
    payload = bytes(body[_FIELDS.size :])
    return RowRecord(row, status, payload, attempts, prompt, output, cached, latency_s, waited_s)


def header(run_id: bytes, shard: int) -> bytes:
    return HEADER.pack(MAGIC, run_id, shard)


def packed_records(path: Path, run_id: bytes, shard: int) -> Iterator[bytes]:
    """Records of a journal as they lie there, up to the first that is not whole.

    Nothing for a file that is gone, empty, torn in its header, or of another run.
    Raises OSError where the disk fails.
    """
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        return
    with stream:
        try:
            if stream.read(HEADER.size) == header(run_id, shard):
                yield from _frames(stream, os.fstat(stream.fileno()).st_size - HEADER.size)
        except OSError as error:
            # NFS's word for a file that its owner has removed: its shard is committed.
            if error.errno != errno.ESTALE or path.exists():
                raise


def _frames(stream: BinaryIO | BufferedReader, num_left: int) -> Iterator[bytes]:
    while num_left >= _FRAME.size:
        frame = stream.read(_FRAME.size)
        if len(frame) < _FRAME.size:
            return
        length, crc = _FRAME.unpack(frame)
        num_left -= _FRAME.size + length
        # A file that ends in NULs would offer records of no length, whose checksum fits.
        if length < _FIELDS.size or num_left < 0:
            return
        body = stream.read(length)
        if len(body) < length or zlib.crc32(body) != crc:
            return
        yield frame + body


def records(path: Path, run_id: bytes, shard: int) -> Iterator[RowRecord]:
    """`packed_records`, read."""
    return map(unpack, packed_records(path, run_id, shard))


def committed(path: Path, run_id: bytes, shard: int) -> Iterator[RowRecord]:
    """Summary and rows of a committed shard, which must be whole.

    Raises DamagedShardError where it is not: the disk lost what it had promised to keep.
    """
    found = records(path, run_id, shard)
    summary = next(found, None)
    if summary is None or summary.status != SUMMARY:
        raise DamagedShardError(f"{path} is damaged: the disk lost what was written")
    num_rows = 0
    yield summary
    for record in found:
        if record.row != num_rows:
            raise DamagedShardError(f"{path} is damaged: the disk lost what was written")
        num_rows += 1
        yield record
    if num_rows != msgspec.json.decode(summary.payload)["num_rows"]:
        raise DamagedShardError(f"{path} is damaged: the disk lost what was written")
