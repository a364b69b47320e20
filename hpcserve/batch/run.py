"""A whole run of `hpcserve batch`: what is left of it, an engine for that, output and report."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from hpcserve.batch import progress
from hpcserve.batch.begin import begin
from hpcserve.batch.dialect import make_dialect
from hpcserve.batch.engine import Backend
from hpcserve.batch.files import STANDARD
from hpcserve.batch.finish import Follower, finish_run, known_result
from hpcserve.batch.report import RunResult
from hpcserve.batch.row_stream import RowStream
from hpcserve.batch.worker import Worker
from hpcserve.config.batch import BatchConfig, RowDefaults
from hpcserve.errors import ConfigError, OutputError


def run_batch(
    backend: Backend,
    batch: BatchConfig,
    defaults: RowDefaults,
    *,
    seed: int = 0,
    stream: TextIO | None = None,
    argv: Sequence[str] = (),
) -> RunResult | None:
    """Answer every row of `batch.inputs` that has no answer yet, and write the output.

    Progress and the closing table go to `stream` (stderr). Any number of processes may call this
    for one run at the same time: they share its rows, and each returns when all are answered, or
    with None where others finish the run and `batch.idle_timeout_s` lets this one go before.

    Raises, before the engine is started: ConfigError, InputError, OutputError. IncompleteRunError
    where the run ended early, with every finished row kept.
    """
    stream = stream or sys.stderr
    if batch.output == STANDARD or _is_special(Path(batch.output)):
        return _run_to_stream(backend, batch, defaults, seed, stream)
    return _run(backend, batch, defaults, Path(batch.output), seed, stream, argv)


def _is_special(path: Path) -> bool:
    """A pipe or a device such as /dev/null: nothing beside it can be kept."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _run_to_stream(
    backend: Backend, batch: BatchConfig, defaults: RowDefaults, seed: int, stream: TextIO
) -> RunResult | None:
    """Rows go out as they finish; the run's files live as long as this process."""
    name = "stdout" if batch.output == STANDARD else batch.output
    if batch.errors == "file":
        raise ConfigError(f"--errors file: there is no place beside {name}; name an output file")
    with tempfile.TemporaryDirectory(prefix="hpcserve-batch-") as folder, _sink(batch) as sink:
        rows = RowStream(sink, ordered=not batch.unordered)
        kept = Path(folder) / "stdout.jsonl"
        try:
            result = _run(backend, batch, defaults, kept, seed, stream, (), rows, shown=name)
            rows.close()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"cannot write to {name}: {error.strerror}") from error
    return result


@contextlib.contextmanager
def _sink(batch: BatchConfig) -> Iterator[BinaryIO]:
    if batch.output == STANDARD:
        yield sys.stdout.buffer
        return
    with Path(batch.output).open("wb") as sink:
        yield sink


def _run(
    backend: Backend,
    batch: BatchConfig,
    defaults: RowDefaults,
    output: Path,
    seed: int,
    stream: TextIO,
    argv: Sequence[str],
    rows: RowStream | None = None,
    *,
    shown: str | None = None,
) -> RunResult | None:
    begun = begin(backend, batch, defaults, output, seed=seed, argv=argv)
    run_dir, manifest = begun.run_dir, begun.manifest
    result = known_result(run_dir, manifest, output)
    if result is None:
        if len(run_dir.committed()) < len(manifest.shards):
            follower = None if manifest.ordered or rows else Follower(run_dir, manifest, output)
            dialect = make_dialect(manifest, backend)
            worker = Worker(
                *(backend, batch, run_dir, manifest, begun.inputs, dialect, stream, rows),
                is_needed=lambda: follower is not None and follower.is_writing,
            )
            with follower or contextlib.nullcontext():
                if not _run_loop(worker):
                    return None
        result = finish_run(run_dir, manifest, output, batch)
        if result is None:
            return None
    progress.print_summary(result, shown or str(output), stream)
    return result


def _run_loop(worker: Worker) -> bool:
    """uvloop does in C what a row costs of an event loop; Windows has none."""
    try:
        import uvloop
    except ImportError:
        start: Callable[[Coroutine[Any, Any, bool]], bool] = asyncio.run
    else:
        start = uvloop.run
    thresholds = gc.get_threshold()
    # Rows leave no cycles behind; looking for them after every 700 objects costs a sixth of all.
    gc.set_threshold(100_000, 50, 50)
    try:
        return start(worker.run())
    finally:
        gc.set_threshold(*thresholds)
