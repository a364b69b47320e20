"""The output of a run, from its finished shards: complete under its name, or not there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from hpcserve import registry
from hpcserve.batch import journal
from hpcserve.batch.durable import fsync_folder, sweep, temporary_name
from hpcserve.batch.files import format_suffix
from hpcserve.batch.inputs import InputFile
from hpcserve.batch.journal import RowRecord
from hpcserve.batch.manifest import Manifest
from hpcserve.batch.run_dir import RunDir
from hpcserve.batch.writers.base import RowWriter
from hpcserve.errors import IncompleteRunError, OutputError

WRITERS = "hpcserve.batch.writers"
#: Called with each row's record, in the output's order: for the report.
Observe = Callable[[int, RowRecord], None]
#: A file, and which rows it gets.
Target = tuple[Path, Callable[[RowRecord], bool]]


def writer_kind(name: str) -> Any:
    """The module that writes files of this ending. Raises OutputError."""
    suffix = format_suffix(name) or "jsonl"
    known = registry.names(WRITERS)
    if suffix not in known:
        raise OutputError(f"cannot write {name}: known endings are .{', .'.join(known)}")
    return registry.load(WRITERS, suffix)


def errors_path(output: Path) -> Path:
    """Where `--errors file` puts rows that failed: beside the output."""
    base = output.name
    for ending in ("".join(output.suffixes[-2:]), output.suffix):
        if ending and format_suffix(f"x{ending}") and base.endswith(ending):
            return output.with_name(f"{base.removesuffix(ending)}.errors{ending}")
    return output.with_name(f"{base}.errors")


def outputs_of(output: Path, errors: str) -> list[Path]:
    """The files that a run writes."""
    return [output, errors_path(output)] if errors == "file" else [output]


def refuse_inputs(inputs: Sequence[InputFile], output: Path, errors: str = "inline") -> None:
    """Raise OutputError where what is written would take the place of what is read."""
    for path in outputs_of(output, errors):
        for one in inputs:
            if path.exists() and one.path.exists() and path.samefile(one.path):
                raise OutputError(f"input and output are the same file: {path}")


def write_output(
    run_dir: RunDir,
    manifest: Manifest,
    output: Path,
    *,
    observe: Observe = lambda number, record: None,
    partial: bool = False,
    following: Iterable[int] | None = None,
) -> int:
    """Write `output` from every finished shard; returns how many rows are in it.

    partial: also where shards are missing.  following: shards in the order in which they are
    finished, while the run goes on; until the last one the file is called `growing_path`.
    Raises IncompleteRunError where the disk refuses, or a shard is damaged (it is put aside, and
    answered again when the run goes on); the output that was there before stays.
    """
    numbers = following or _all_of(run_dir, manifest, partial=partial)
    rows = _observed(_rows(run_dir, manifest, numbers), observe)
    targets: list[Target] = [(output, rows_of_any_kind)]
    if manifest.errors == "file":
        targets = [(output, is_answer), (errors_path(output), is_failure)]
    name = temporary_name if following is None else growing_path
    return _write(targets, manifest, rows, [name(path) for path, _ in targets])


def growing_path(final: Path) -> Path:
    """What an output is called that is written while its run goes on."""
    return final.with_name(f"{final.name}.partial")


def _all_of(run_dir: RunDir, manifest: Manifest, *, partial: bool) -> list[int]:
    numbers = _in_order(run_dir, manifest)
    missing = len(manifest.shards) - len(numbers)
    if missing and not partial:
        raise IncompleteRunError(
            f"{missing:,} of {len(manifest.shards):,} shards of {run_dir.path} are not finished; "
            "resume the run, or merge what is there with --partial"
        )
    return numbers


def rows_of_any_kind(record: RowRecord) -> bool:
    return record.status in (journal.OK, journal.FAILED, journal.QUARANTINED)


def is_answer(record: RowRecord) -> bool:
    return record.status == journal.OK


def is_failure(record: RowRecord) -> bool:
    return not is_answer(record)


def _write(
    targets: list[Target],
    manifest: Manifest,
    rows: Iterable[tuple[int, RowRecord]],
    temporaries: list[Path],
) -> int:
    num_rows = 0
    try:
        with ExitStack() as stack:
            writers: list[RowWriter] = [
                stack.enter_context(writer_kind(path.name).Writer(temporary, path, manifest))
                for (path, _), temporary in zip(targets, temporaries, strict=True)
            ]
            for shard, record in rows:
                num_rows += 1
                for writer, (_, wants) in zip(writers, targets, strict=True):
                    if wants(record):
                        writer.write(shard, record)
        for (path, _), temporary in zip(targets, temporaries, strict=True):
            temporary.replace(path)
            fsync_folder(path.parent)
    except OSError as error:
        raise IncompleteRunError(
            f"cannot write the output {targets[0][0]}: {error.strerror or error}; every answer is "
            "kept: run the same command again when this is mended"
        ) from error
    finally:
        for temporary in temporaries:
            sweep(temporary)
    return num_rows


def _in_order(run_dir: RunDir, manifest: Manifest) -> list[int]:
    numbers = sorted(run_dir.committed())
    if manifest.ordered:
        return numbers
    return sorted(numbers, key=lambda number: run_dir.shard(number).stat().st_mtime_ns)


def _rows(
    run_dir: RunDir, manifest: Manifest, numbers: Iterable[int]
) -> Iterator[tuple[int, RowRecord]]:
    for number in numbers:
        path = run_dir.shard(number)
        with undamaged(path):
            for record in journal.committed(path, manifest.run_id_bytes, number):
                if record.status != journal.SUMMARY:
                    yield number, record


@contextmanager
def undamaged(path: Path) -> Iterator[None]:
    """Puts a shard aside that is found to be damaged within the block: IncompleteRunError."""
    try:
        yield
    except journal.DamagedShardError as error:
        path.rename(path.with_name(f"{path.name}.damaged"))
        raise IncompleteRunError(
            f"{error}; it was put aside, and its rows are answered again when the run goes on"
        ) from error


def _observed(
    rows: Iterable[tuple[int, RowRecord]], observe: Observe
) -> Iterator[tuple[int, RowRecord]]:
    for number, record in rows:
        observe(number, record)
        yield number, record
