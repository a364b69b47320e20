"""Writes that are there after a crash, on local disks, NFS and Lustre alike: no locks.

What is relied on is little: a file that was fsynced keeps its bytes, `link` and `rename` within a
folder are atomic, and a record whose checksum fits was written whole.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from hpcserve.errors import IncompleteRunError
from hpcserve.log import get_logger

log = get_logger(__name__)

_DISK_ERRORS = frozenset(
    getattr(errno, name)
    for name in ("EIO", "ESTALE", "ETIMEDOUT", "EREMOTEIO", "ENODEV", "ENXIO", "ENOTCONN")
    if hasattr(errno, name)
)
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})


def write_whole(descriptor: int, data: bytes) -> None:
    """All of `data`; the system may take less at a time. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def fsync_folder(folder: Path) -> None:
    """Make names that were added to `folder` last. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(path: Path) -> None:
    """Take away a file that nobody needs any more; one that stays does no harm."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.debug("%s stays: %s", path, error)


def temporary_name(final: Path) -> Path:
    """A name beside `final` that nobody else has."""
    return final.with_name(f".{final.name}.{secrets.token_hex(6)}.tmp")


def temporaries_of(final: Path) -> list[Path]:
    """What `temporary_name` has called files for `final`, by processes that were killed."""
    own = re.compile(rf"\.{re.escape(final.name)}\.[0-9a-f]{{12}}\.tmp")
    return [one for one in final.parent.iterdir() if own.fullmatch(one.name)]


def write_file(path: Path, pieces: Iterable[bytes]) -> None:
    """A new file with these bytes, on the disk; its name is not yet. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        for piece in pieces:
            write_whole(descriptor, piece)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(temporary: Path, final: Path, *, durable: bool = True) -> bool:
    """Give a complete file its name, unless another has it already; True where it is ours.

    Of two who publish the same name one wins, and nobody ever sees a part of either. Where the
    file system knows no hard links, a rename does it: then the last one wins, whole as well.
    """
    try:
        os.link(temporary, final)
        won = True
    except FileExistsError:
        won = False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        temporary.replace(final)
        won = True
    sweep(temporary)
    if durable:
        fsync_folder(final.parent)
    return won


def replace_file(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write `path` anew: readers see the old bytes or the new ones. Raises OSError."""
    temporary = temporary_name(path)
    try:
        if durable:
            write_file(temporary, [data])
        else:
            temporary.write_bytes(data)
        temporary.replace(path)
    except OSError:
        sweep(temporary)
        raise
    if durable:
        fsync_folder(path.parent)


def read_json(path: Path) -> Any:
    """What is in a JSON file; None where there is none, or a torn one."""
    try:
        return msgspec.json.decode(path.read_bytes())
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def of_the_disk(error: OSError) -> bool:
    """Whether it says something of the disk or its server rather than of the file."""
    return error.errno in _DISK_ERRORS


@contextmanager
def storage(place: Path | str, verb: str = "write") -> Iterator[None]:
    """Within the block an OSError (disk full, quota, EIO, ESTALE) ends the run, to be resumed."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        where = error.filename or place
        raise IncompleteRunError(
            f"cannot {verb} {where}: {error.strerror or error}; finished rows are kept: run the "
            "same command again when this is mended"
        ) from error
