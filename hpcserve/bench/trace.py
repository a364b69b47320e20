"""Trace files: one request a line (JSON), so that every engine gets the very same requests."""

from __future__ import annotations

from pathlib import Path

import msgspec

from hpcserve.bench.request import BenchRequest
from hpcserve.errors import InputError, OutputError


def save_trace(path: Path, requests: list[BenchRequest]) -> None:
    """Write one JSON object a line; replaces the file."""
    encoder = msgspec.json.Encoder()
    try:
        path.write_bytes(b"".join(encoder.encode(request) + b"\n" for request in requests))
    except OSError as error:
        raise OutputError(f"cannot write the trace {path}: {error}") from error


def load_trace(path: Path) -> list[BenchRequest]:
    """Read what `save_trace` wrote. Raises InputError with the number of a bad line."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"cannot read the trace {path}: {error}") from error
    decoder = msgspec.json.Decoder(BenchRequest)
    requests = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            request = decoder.decode(line)
        except msgspec.DecodeError as error:
            raise InputError(f"{path}:{number}: {error}") from error
        request.check(f"{path}:{number}")
        requests.append(request)
    if not requests:
        raise InputError(f"the trace {path} holds no request")
    return requests
