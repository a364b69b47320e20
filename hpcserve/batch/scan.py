"""Looks through the inputs once, before any model is loaded: counts, shards, fingerprints, names."""

from __future__ import annotations

import hashlib
from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from hpcserve.batch.files import unreadable
from hpcserve.batch.formats.base import Scanned, Span
from hpcserve.batch.inputs import InputFile
from hpcserve.batch.row import EMBEDDING_URL, NO_EMBEDDINGS, row_name
from hpcserve.errors import InputError

_SHOWN_DUPLICATES = 5


class FileFacts(msgspec.Struct, frozen=True):
    """What tells a file from another. size, mtime_ns: enough to believe that it is unchanged;
    sha256: what decides where they differ. Of a folder: of all its files."""

    path: str
    format: str
    size: int
    mtime_ns: int
    sha256: str
    num_rows: int
    num_blank: int


class Shard(msgspec.Struct, frozen=True, array_like=True):
    """first: number of its first row among all rows of the run; file: number of its file."""

    first: int
    file: int
    span: Span


class Scan(msgspec.Struct, frozen=True):
    files: list[FileFacts]
    shards: list[Shard]


def scan_inputs(inputs: Sequence[InputFile], *, span_rows: int, id_column: str | None) -> Scan:
    """Raises InputError for a file that cannot be read, has no rows, or names two rows alike."""
    files: list[FileFacts] = []
    shards: list[Shard] = []
    hashes = array("q")
    num_embeddings = 0
    several = len(inputs) > 1
    with ThreadPoolExecutor(1, thread_name_prefix="digest") as pool:
        for number, one in enumerate(inputs):
            before = stat_of(one.path)
            digest: Future[str] = pool.submit(sha256_of, one.path)
            num_rows = 0
            with closing(one.reader(id_column)) as reader:
                for scanned in reader.scan(span_rows):
                    shards.append(Shard(_end(shards), number, scanned.span))
                    names = _names(scanned, number if several else None)
                    hashes.extend(map(_hash, names))
                    num_rows += scanned.span.num_rows
                    num_embeddings += scanned.urls.get(EMBEDDING_URL, 0)
            if stat_of(one.path) != before:
                raise InputError(f"{one.path} was changed while it was read; try again")
            facts = (str(one.path.absolute()), one.format, *before, digest.result())
            files.append(FileFacts(*facts, num_rows, reader.num_blank))
    if not shards:
        raise InputError(f"the input {', '.join(one.path for one in files)} has no rows")
    if num_embeddings == _end(shards):
        # Where some rows can be answered, each of the others says for itself why it is not.
        raise InputError(f"every row asks for {EMBEDDING_URL}: {NO_EMBEDDINGS}")
    _refuse_duplicates(inputs, hashes, span_rows, id_column)
    return Scan(files, shards)


def _end(shards: Sequence[Shard]) -> int:
    return shards[-1].first + shards[-1].span.num_rows if shards else 0


def _names(scanned: Scanned, file: int | None) -> Iterator[Any]:
    for given, line in zip(scanned.ids, scanned.lines, strict=True):
        yield row_name(line, file) if given is None else given


def _hash(name: Any) -> int:
    """Of 64 bits, the same for equal names within this process; 1 and "1" are two names."""
    if isinstance(name, str):
        return hash(name)
    # Names of other kinds are the row's own error; here they must only not be alike.
    return hash((type(name).__name__, repr(name)))


def _refuse_duplicates(
    inputs: Sequence[InputFile],
    hashes: array[int],
    span_rows: int,
    id_column: str | None,
) -> None:
    """8 bytes a row find the few that may be alike; a second look at those decides."""
    everything = np.frombuffer(hashes, np.int64)  # no copy: sorted where it lies
    everything.sort()
    suspects = set(everything[1:][everything[1:] == everything[:-1]].tolist())
    if not suspects:
        return
    places: dict[Any, list[str]] = defaultdict(list)
    several = len(inputs) > 1
    for number, one in enumerate(inputs):
        where = f"{one.path} line " if several else "line "
        with closing(one.reader(id_column)) as reader:
            for scanned in reader.scan(span_rows):
                names = _names(scanned, number if several else None)
                for name, line in zip(names, scanned.lines, strict=True):
                    if _hash(name) in suspects and isinstance(name, str | int):
                        places[type(name).__name__, name].append(f"{where}{line}")
    found = {name: lines for (_, name), lines in places.items() if len(lines) > 1}
    if found:
        raise InputError(_duplicates_message(found))


def _duplicates_message(found: dict[Any, list[str]]) -> str:
    shown = [
        f"{name!r} ({', '.join(lines[:4])}{', ...' if len(lines) > 4 else ''})"
        for name, lines in list(found.items())[:_SHOWN_DUPLICATES]
    ]
    more = f" and {len(found) - len(shown):,} more" if len(found) > len(shown) else ""
    return (
        f"{len(found):,} custom_id{'s are' if len(found) > 1 else ' is'} given more than once: "
        f"{'; '.join(shown)}{more}; "
        "answers could not be told apart. Name another column with --id-column, or say "
        "--id-column none to number the rows"
    )


def stat_of(path: Path) -> tuple[int, int]:
    """Size and time of change of a file; of a folder, over its files. Raises InputError."""
    try:
        stats = [one.stat() for one in _files_of(path)]
    except OSError as error:
        raise unreadable(path, error) from error
    return sum(one.st_size for one in stats), max((one.st_mtime_ns for one in stats), default=0)


def sha256_of(path: Path) -> str:
    """Of a file's bytes; of a folder, over its files in order. Raises InputError."""
    digest = hashlib.sha256()
    try:
        for one in _files_of(path):
            with one.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    except OSError as error:
        raise unreadable(path, error) from error
    return digest.hexdigest()


def _files_of(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(one for one in path.iterdir() if one.is_file())
