"""Streams the rows of a file through the engine: one line of output for each, in their order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

from hpcserve.batch.engine import PreparedRequest, RowAnswer, RowEngine
from hpcserve.batch.formats.base import BatchReader, BatchWriter
from hpcserve.batch.ledger import Ledger
from hpcserve.batch.output import OutputRecords
from hpcserve.batch.prepare import ROW_ERRORS, Preparation
from hpcserve.batch.report import BatchReport
from hpcserve.batch.row import BatchRow, Failure, RowDialect
from hpcserve.batch.seen_ids import SeenIds
from hpcserve.batch.window import Window
from hpcserve.errors import EngineError, InputError, QueueFullError

_FLUSH_INTERVAL_S = 1.0
_QUEUE_FULL_WAIT_S = 0.05


class BatchRunner:
    """One run. `report` may be read at any time, also while it runs."""

    def __init__(
        self,
        engine: RowEngine,
        reader: BatchReader,
        writer: BatchWriter,
        ledger: Ledger,
        dialect: RowDialect,
        *,
        max_rows_in_flight: int | None = None,
    ) -> None:
        self.report = BatchReport()
        self._engine = engine
        self._reader = reader
        self._writer = writer
        self._ledger = ledger
        self._preparation = Preparation(reader, dialect, engine)
        self._records = OutputRecords(reader.source.name)
        self._seen = SeenIds()
        limits = engine.limits
        self._window = Window(
            min_rows=limits.max_running_requests,
            max_rows=max_rows_in_flight or 4 * limits.max_running_requests,
            max_tokens=2 * limits.max_total_tokens,
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._fatal: asyncio.Future[None] | None = None

    async def run(self) -> BatchReport:
        """Answer every row and commit the output.

        Raises InputError, EngineError, IncompleteRunError; then, as when the task is cancelled,
        the answers so far are in the partial output.
        """
        self._fatal = asyncio.get_running_loop().create_future()
        flusher = asyncio.create_task(self._flush_often())
        flusher.add_done_callback(self._on_done)
        try:
            await self._until_fatal(self._feed())
            await self._until_fatal(self._window.drained())
            self._check_not_empty()
            self._ledger.commit()
        except BaseException:
            await self._stop()
            self._ledger.keep()
            raise
        finally:
            flusher.cancel()
            self._preparation.close()
            self.report.num_blank = self._reader.num_blank
            self.report.ended_s = time.perf_counter()
        return self.report

    def _check_not_empty(self) -> None:
        if self.report.num_rows == 0:
            raise InputError(f"the input {self._reader.source.name} has no rows")

    async def _feed(self) -> None:
        async for chunk in self._preparation.chunks():
            known = self._seen.add_all([row.custom_id for row in chunk])
            for row, is_duplicate in zip(chunk, known, strict=True):
                if is_duplicate:
                    row.failure = Failure(
                        "duplicate_custom_id", f"an earlier row has the custom_id {row.custom_id!r}"
                    )
                await self._start(row)

    async def _start(self, row: BatchRow) -> None:
        self.report.add_row(row)
        await self._ledger.room()
        if row.failure is not None:
            self._finish_failed(row, row.failure)
            return
        self.report.add_model(row.body.get("model"), self._engine.model_names)
        request: PreparedRequest = row.request
        row.body = {}
        await self._window.enter(request.num_tokens)
        task = asyncio.create_task(self._answer(row, request))
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    async def _answer(self, row: BatchRow, request: PreparedRequest) -> None:
        try:
            answer = await self._ask(request)
        except EngineError:
            raise
        except ROW_ERRORS as error:
            self._finish_failed(row, Failure.of(error))
        else:
            self.report.add_answer(row, answer)
            record = self._records.answer(row, answer.body)
            self._ledger.finish(row.index, self._writer.encode(record))
        self._window.leave(request.num_tokens)

    async def _ask(self, request: PreparedRequest) -> RowAnswer:
        while True:
            try:
                return await self._engine.answer(request)
            except QueueFullError:
                # The user has set a limit that is lower than the window.
                await asyncio.sleep(_QUEUE_FULL_WAIT_S)

    def _finish_failed(self, row: BatchRow, failure: Failure) -> None:
        self.report.add_failure(row, failure)
        record = self._records.failure(row, failure)
        self._ledger.finish(row.index, self._writer.encode(record))

    def _on_done(self, task: asyncio.Task[None]) -> None:
        """A row's task raises only what ends the run."""
        self._tasks.discard(task)
        if task.cancelled() or self._fatal is None or self._fatal.done():
            return
        error = task.exception()
        if error is not None:
            self._fatal.set_exception(error)

    async def _until_fatal(self, work: Coroutine[Any, Any, None]) -> None:
        """Await `work`, but no longer than until a row's task or the flusher has failed."""
        if self._fatal is None:
            raise RuntimeError("run() sets the future that this waits for")
        task = asyncio.create_task(work)
        try:
            await asyncio.wait({task, self._fatal}, return_when=asyncio.FIRST_COMPLETED)
            if self._fatal.done():
                self._fatal.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
        task.result()

    async def _flush_often(self) -> None:
        while True:
            await asyncio.sleep(_FLUSH_INTERVAL_S)
            self._ledger.flush()

    async def _stop(self) -> None:
        """Abort the rows in flight; cancelling a row's task aborts its request."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
