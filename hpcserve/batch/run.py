"""A whole run of `hpcserve batch`: checks, engine, rows, report."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, TextIO

from hpcserve import registry
from hpcserve.batch import progress
from hpcserve.batch.engine import RowEngine
from hpcserve.batch.files import STANDARD, InputFile, check_paths, format_suffix, open_output
from hpcserve.batch.formats.base import BatchReader, BatchWriter
from hpcserve.batch.ledger import Ledger
from hpcserve.batch.report import BatchReport
from hpcserve.batch.row import RowDialect
from hpcserve.batch.runner import BatchRunner
from hpcserve.batch.sampling import body_defaults
from hpcserve.config.batch import BatchConfig, RowDefaults
from hpcserve.config.engine import EngineConfig
from hpcserve.errors import EngineDeadError, IncompleteRunError, InputError

_FORMATS = "hpcserve.batch.formats"
_DEFAULT_FORMAT = "jsonl"
#: Answers that wait for an earlier row, before no more rows are started.
_MAX_HELD_BYTES = 256 << 20

#: Makes the engine of a run; it is closed when the context ends.
OpenEngine = Callable[[EngineConfig], AbstractAsyncContextManager[RowEngine]]


def run_batch(
    engine_config: EngineConfig,
    batch: BatchConfig,
    defaults: RowDefaults,
    open_engine: OpenEngine,
    *,
    stream: TextIO | None = None,
) -> BatchReport:
    """Answer every row of `batch.input`; progress and the closing table go to `stream` (stderr).

    Raises InputError and OutputError before the engine is started, where they can be foreseen;
    IncompleteRunError where the run ended early and left its answers in the partial output.
    """
    check_paths(batch.input, batch.output, overwrite=batch.overwrite)
    reader_class, writer_class = _formats(batch)
    source = InputFile(batch.input)

    async def run() -> BatchReport:
        async with open_engine(engine_config) as engine:
            known = engine.sampling_fields
            dialect = RowDialect(
                fields=engine.fields,
                defaults=body_defaults(defaults, known),
                seed=engine_config.scheduler.random_seed,
                apply_chat_template=batch.apply_chat_template,
            )
            sink = open_output(batch.output, overwrite=batch.overwrite)
            ledger = Ledger(sink, max_held_bytes=_MAX_HELD_BYTES)
            runner = BatchRunner(
                engine,
                reader_class(source),
                writer_class(),
                ledger,
                dialect,
                max_rows_in_flight=batch.max_rows_in_flight,
            )
            return await _watched(runner, ledger, source, batch, stream or sys.stderr)

    try:
        return asyncio.run(run())
    finally:
        source.close()


async def _watched(
    runner: BatchRunner, ledger: Ledger, source: InputFile, batch: BatchConfig, stream: TextIO
) -> BatchReport:
    """Run with its progress shown, and end in good order where a signal asks for it."""
    shown = progress.shown(
        runner.report, source.total_bytes, stream, log_interval_s=batch.log_interval_s
    )
    caught: list[signal.Signals] = []
    try:
        with shown, _stopping_signals(caught):
            report = await runner.run()
    except asyncio.CancelledError:
        if not caught:
            raise
        text = f"stopped by {caught[0].name}; {_so_far(ledger)}"
        if caught[0] is signal.SIGINT:
            print(text, file=stream)
            raise KeyboardInterrupt from None
        raise IncompleteRunError(text) from None
    except EngineDeadError as error:
        raise IncompleteRunError(f"{error}; {_so_far(ledger)}") from error
    progress.print_summary(report, ledger.place, stream)
    return report


def _so_far(ledger: Ledger) -> str:
    return f"{ledger.num_written:,} finished rows are in {ledger.place}"


@contextmanager
def _stopping_signals(caught: list[signal.Signals]) -> Iterator[None]:
    """Within the block, SIGINT and SIGTERM cancel the current task once; a second one kills."""
    task = asyncio.current_task()
    if task is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()

    def stop(which: signal.Signals) -> None:
        caught.append(which)
        loop.remove_signal_handler(which)
        task.cancel()

    wanted = (signal.SIGINT, signal.SIGTERM)
    for which in wanted:
        loop.add_signal_handler(which, stop, which)
    try:
        yield
    finally:
        for which in wanted:
            loop.remove_signal_handler(which)


def _formats(batch: BatchConfig) -> tuple[type[BatchReader], type[BatchWriter]]:
    reader: type[BatchReader] = _format_of(batch.input).Reader
    writer: type[BatchWriter] = _format_of(batch.output).Writer
    return reader, writer


def _format_of(name: str) -> Any:
    """The format's module, by the file's ending; stdin, stdout and devices are JSON Lines."""
    suffix = format_suffix(name) if name != STANDARD else ""
    known = registry.names(_FORMATS)
    if suffix and suffix not in known:
        raise InputError(
            f"cannot tell the format of {name} by its ending; known: .{', .'.join(known)}"
        )
    return registry.load(_FORMATS, suffix or _DEFAULT_FORMAT)
