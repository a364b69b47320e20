"""Proves from the files alone that every row of the input has exactly one output.

What is read: the inputs, anew, and the output. Journals and shards are not believed, and not asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from hpcserve.batch.manifest import Manifest
from hpcserve.batch.merge import errors_path, writer_kind
from hpcserve.batch.output import RowMarks
from hpcserve.batch.row import row_name
from hpcserve.batch.run_dir import RunDir
from hpcserve.batch.scan import sha256_of
from hpcserve.batch.verbs import manifest_of

_ID_PREFIX = "batch_req_"
_SHOWN = 5

Marks = npt.NDArray[np.bytes_]
Names = npt.NDArray[np.int64]


class Proof(msgspec.Struct):
    """problems: in words; empty where the output is right."""

    num_rows: int
    num_files: int
    problems: list[str] = []


def verify_run(run_dir: RunDir) -> Proof:
    """Raises InputError where inputs or output cannot be read."""
    manifest = manifest_of(run_dir)
    proof = Proof(0, len(manifest.scan.files))
    output = Path(manifest.output)
    paths = [output, errors_path(output)] if manifest.errors == "file" else [output]
    for path in paths:
        if not path.is_file():
            proof.problems.append(f"there is no output {path}")
    for facts in manifest.scan.files:
        if sha256_of(Path(facts.path)) != facts.sha256:
            proof.problems.append(f"the input {facts.path} is not what the run began with")
    if proof.problems:
        return proof
    wanted, wanted_names = _packed(_expected(manifest))
    proof.num_rows = len(wanted)
    found, found_names = _packed(_written(paths, proof))
    is_ordered = manifest.ordered and len(paths) == 1
    _compare(proof, wanted, wanted_names, found, found_names, is_ordered=is_ordered)
    return proof


def _expected(manifest: Manifest) -> Iterator[tuple[bytes, Any]]:
    """Mark and name of every input row. A row whose id is no id has none."""
    marks = RowMarks([facts.path.rsplit("/", 1)[-1] for facts in manifest.scan.files])
    several = len(manifest.scan.files) > 1
    for number, one in enumerate(manifest.input_files()):
        with closing(one.reader(manifest.id_column)) as reader:
            for scanned in reader.scan(manifest.span_rows):
                for given, line in zip(scanned.ids, scanned.lines, strict=True):
                    if given is None:
                        given = row_name(line, number if several else None)
                    yield bytes.fromhex(marks.of(number, line)), given


def _written(paths: Iterable[Path], proof: Proof) -> Iterator[tuple[bytes, Any]]:
    for path in paths:
        for place, row_id, custom_id in writer_kind(path.name).names(path):
            mark = str(row_id).removeprefix(_ID_PREFIX)
            try:
                yield bytes.fromhex(mark), custom_id
            except ValueError:
                if len(proof.problems) < _SHOWN:
                    proof.problems.append(f"{path} {place}: {row_id!r} is no id of a row")


def _packed(rows: Iterator[tuple[bytes, Any]]) -> tuple[Marks, Names]:
    """20 bytes a row."""
    marks = bytearray()
    names: list[npt.NDArray[np.int64]] = []
    block: list[int] = []
    for mark, name in rows:
        marks += mark.ljust(12, b"\0")[:12]
        # A row without a readable id has none in its output either; it is held by its mark alone.
        # As text: Parquet holds no other.
        block.append(hash(str(name)) if isinstance(name, str | int) else 0)
        if len(block) == 1 << 14:
            names.append(np.array(block, np.int64))
            block = []
    names.append(np.array(block, np.int64))
    return np.frombuffer(bytes(marks), "S12"), np.concatenate(names)


def _compare(
    proof: Proof,
    wanted: Marks,
    wanted_names: Names,
    found: Marks,
    found_names: Names,
    *,
    is_ordered: bool,
) -> None:
    if is_ordered and len(wanted) == len(found):
        wrong = np.flatnonzero(wanted != found)
        if not len(wrong):
            _compare_names(proof, wanted_names, found_names)
            return
    order, other = np.argsort(wanted, kind="stable"), np.argsort(found, kind="stable")
    first, second = wanted[order], found[other]
    twice = int(np.count_nonzero(second[1:] == second[:-1]))
    missing = np.setdiff1d(first, second)
    foreign = np.setdiff1d(second, first)
    if len(missing):
        rows = np.flatnonzero(np.isin(wanted, missing))[:_SHOWN] + 1
        shown = ", ".join(f"{row:,}" for row in rows)
        proof.problems.append(f"{len(missing):,} input rows have no output, such as row {shown}")
    if twice:
        proof.problems.append(f"{twice:,} outputs are there more than once")
    if len(foreign):
        proof.problems.append(f"{len(foreign):,} outputs answer no row of the input")
    if proof.problems:
        return
    if is_ordered:
        proof.problems.append("the outputs are not in the order of the input")
    _compare_names(proof, wanted_names[order], found_names[other])


def _compare_names(proof: Proof, wanted: Names, found: Names) -> None:
    wrong = np.flatnonzero((wanted != found) & (found != 0) & (wanted != 0))
    if len(wrong):
        proof.problems.append(f"{len(wrong):,} outputs carry the custom_id of another row")
