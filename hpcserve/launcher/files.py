"""Small files that other nodes read while we write them: whole or not at all, and on disk."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from hpcserve.errors import OutputError


def write_atomically(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Write by temporary file and rename, so that a reader on any node sees the old or the new.

    Raises OutputError where the disk is full or the folder is gone.
    """
    temporary = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def write_json(path: Path, content: dict[str, Any], *, mode: int = 0o644) -> None:
    write_atomically(path, json.dumps(content, indent=1, sort_keys=True) + "\n", mode=mode)


def write_beat(path: Path, content: dict[str, Any]) -> None:
    """`write_json` for a sign of life: on a full disk the old file still gets a new time.

    Raises OutputError as `write_json` does, also where the time was set.
    """
    try:
        write_json(path, content)
    except OutputError:
        with contextlib.suppress(OSError):  # the first error says it all
            os.utime(path)
        raise


def changed_at(path: Path) -> int:
    """When `path` was last written or touched, in ns of its file system's clock; 0 for no file."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in `path`, or None where there is none (yet).

    A stale NFS handle or half a file reads as none: the writer will come by again.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
