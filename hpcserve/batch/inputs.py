"""Which files a run reads: names, globs, folders, stdin."""

from __future__ import annotations

import glob
import hashlib
import os
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hpcserve import registry
from hpcserve.batch.durable import storage, sweep, temporary_name
from hpcserve.batch.files import STANDARD, format_suffix
from hpcserve.batch.formats.base import BatchReader
from hpcserve.errors import InputError

FORMATS = "hpcserve.batch.formats"
DEFAULT_FORMAT = "jsonl"
#: A dataset saved by the library `datasets` is a folder with this file.
_DATASET_FILE = "state.json"
_DATASET_DICT_FILE = "dataset_dict.json"
DATASET_FORMAT = "dataset"


@dataclass(frozen=True)
class InputFile:
    """path: what is read.  format: a module of `formats`."""

    path: Path
    format: str

    def reader(self, id_column: str | None) -> BatchReader:
        kind: type[BatchReader] = registry.load(FORMATS, self.format).Reader
        return kind(self.path, id_column=id_column)


def find_inputs(
    names: Sequence[str],
    format_name: str,
    spool: Path,
    kept: Path | None = None,
    outputs: Collection[Path] = (),
) -> list[InputFile]:
    """The files that `names` mean, in order.

    format_name: "auto" goes by each file's ending.  spool: where stdin or a pipe is kept: a run
    that goes on later must read the same rows again.  kept: what the run has of stdin already; it
    is taken where stdin says nothing now.  outputs: of this run; once they are there a folder or a
    glob may find them, and does not mean them.
    Raises InputError for what is not there, is empty, or has an unknown ending.
    """
    if list(names).count(STANDARD) > 1:
        raise InputError("the input - (stdin) is given twice")
    own = {one.resolve() for one in outputs}
    found = [
        one
        for name in names
        for one in _expand(name, format_name, spool, kept)
        if Path(name) == one.path or one.path.resolve() not in own
    ]
    seen: set[Path] = set()
    for one in found:
        where = one.path.resolve()
        if where in seen:
            raise InputError(f"the input {one.path} is given twice")
        seen.add(where)
    return found


def _expand(name: str, format_name: str, spool: Path, kept: Path | None = None) -> list[InputFile]:
    if name == STANDARD:
        return [InputFile(_standard(spool, kept), _format_of("", format_name))]
    path = Path(name)
    if path.is_dir():
        return _folder(path, format_name)
    if not path.exists() and any(mark in name for mark in "*?["):
        matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 - the name may be absolute
        if not matches:
            raise InputError(f"no file matches {name}")
        return [one for match in matches for one in _expand(match, format_name, spool)]
    if not path.exists():
        raise InputError(f"there is no input file {path}")
    if not os.access(path, os.R_OK):
        raise InputError(f"cannot read the input {path}: Permission denied")
    if not path.is_file():
        with path.open("rb") as stream:
            kept = _spooled(stream, spool)
        return [InputFile(kept, _format_of(name, format_name))]
    if path.stat().st_size == 0:
        raise InputError(f"the input {path} is empty")
    return [InputFile(path, _format_of(name, format_name))]


def _folder(path: Path, format_name: str) -> list[InputFile]:
    if (path / _DATASET_DICT_FILE).is_file():
        splits = ", ".join(sorted(str(one.parent) for one in path.glob(f"*/{_DATASET_FILE}")))
        raise InputError(f"{path} holds several splits; name one of: {splits}")
    if (path / _DATASET_FILE).is_file():
        return [InputFile(path, DATASET_FORMAT)]
    known = set(registry.names(FORMATS))
    files = [
        one
        for one in sorted(path.iterdir())
        if one.is_file() and not one.name.startswith(".") and format_suffix(one.name) in known
    ]
    if not files:
        raise InputError(f"the folder {path} has no input files (.{', .'.join(sorted(known))})")
    return [InputFile(one, _format_of(one.name, format_name)) for one in files]


def _format_of(name: str, format_name: str) -> str:
    """The format's name, by the file's ending; stdin is JSON Lines."""
    suffix = format_suffix(name) if format_name == "auto" else format_name
    known = registry.names(FORMATS)
    if suffix and suffix not in known:
        raise InputError(
            f"cannot tell the format of {name} by its ending; known: .{', .'.join(known)} "
            "(or say --input-format)"
        )
    return suffix or DEFAULT_FORMAT


def _stdin() -> BinaryIO:
    return sys.stdin.buffer


def _standard(spool: Path, kept: Path | None) -> Path:
    stream = _stdin()
    if kept is not None and stream.isatty():
        return kept
    try:
        return _spooled(stream, spool)
    except InputError:  # nobody gives the rows a second time: `batch resume`, for one
        if kept is None:
            raise
        return kept


def _spooled(stream: BinaryIO, spool: Path) -> Path:
    """All of a stream as a file of the run, named by its content: the same rows once more are the
    same file, and others leave it as it is."""
    digest = hashlib.sha256()
    with storage(spool):
        spool.parent.mkdir(parents=True, exist_ok=True)
        new = temporary_name(spool)
        try:
            with new.open("wb") as out:
                while block := stream.read(1 << 20):
                    digest.update(block)
                    out.write(block)
                out.flush()
                os.fsync(out.fileno())
            if new.stat().st_size == 0:
                raise InputError("the input stdin is empty")
            kept = spool.with_name(f"{spool.name}-{digest.hexdigest()[:16]}")
            new.replace(kept)
        finally:
            sweep(new)
    return kept
