"""Streams rows through the engine, in the order that suits it, until every one is finished."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from hpcserve.batch import journal
from hpcserve.batch.deadline import Deadline
from hpcserve.batch.engine import EngineLimits, PreparedRequest, RowAnswer, RowEngine
from hpcserve.batch.journal import RowRecord
from hpcserve.batch.ledger import Ledger
from hpcserve.batch.order import admission_order
from hpcserve.batch.output import OutputRecords
from hpcserve.batch.policy import FailurePolicy
from hpcserve.batch.prepare import Preparation
from hpcserve.batch.report import BatchReport
from hpcserve.batch.row import BatchRow, Failure
from hpcserve.batch.row_maker import ROW_ERRORS
from hpcserve.batch.row_stream import RowStream
from hpcserve.batch.suspects import Suspects
from hpcserve.batch.window import Window
from hpcserve.errors import EngineDeadError, EngineError, IncompleteRunError, QueueFullError

_QUEUE_FULL_WAIT_S = 0.05
_SLOWEST_SHARE = 95
#: A row that the end of the time cut short so often, after most of a job's time, is given up.
_MAX_CUTS = 2
_TOO_LONG = Failure(
    "time_limit", "the row took longer than the time of a whole job, twice", 504, "timeout_error"
)


@dataclass(slots=True)
class InFlight:
    row: BatchRow
    task: asyncio.Task[None]
    since_s: float
    timed_out: bool = False


class BatchRunner:
    """One worker's part of a run. `report` may be read at any time, also while it runs.

    It outlives an engine: `run` is called again with the next one, and goes on.
    """

    def __init__(
        self,
        preparation: Preparation,
        ledger: Ledger,
        records: OutputRecords,
        policy: FailurePolicy,
        deadline: Deadline,
        report: BatchReport,
        *,
        max_rows_in_flight: int | None = None,
        stream: RowStream | None = None,
    ) -> None:
        self.report = report
        self.in_flight: dict[int, InFlight] = {}
        self.suspects = Suspects()
        #: Set when no more rows may start; those in flight may finish.
        self.is_closing = False
        self.last_finish_s = time.monotonic()
        self.num_finished_ok = 0
        #: Rows that killed the engine, with no answered row in between.
        self.num_guilty_in_a_row = 0
        self._preparation = preparation
        self._ledger = ledger
        self._records = records
        self._policy = policy
        self._deadline = deadline
        self._max_rows_in_flight = max_rows_in_flight
        self._stream = stream
        # Kept columns may hold what JSON has no word for.
        self._encoder = msgspec.json.Encoder(enc_hook=str)
        self._incoming: list[BatchRow] = []
        self._queue: deque[BatchRow] = deque()
        self._latencies: deque[float] = deque(maxlen=1000)
        self._usual_s = 0.0
        self._ended = False
        self._fatal: asyncio.Future[None] | None = None

    async def run(self, engine: RowEngine) -> None:
        """Answer every row that is left.

        Raises EngineError where the engine is gone: then `suspects` hold what was in flight.
        Raises what else ends the run; rows in flight are given up, finished ones are the ledger's.
        """
        self._engine = engine
        self._window = self._new_window(engine.limits)
        self._fatal = asyncio.get_running_loop().create_future()
        try:
            await self._until_fatal(self._feed())
            await self._until_fatal(self._window.drained())
        except EngineError:
            self._accuse(await self._stop())
            raise
        except BaseException:  # cancelled, or what else ends the run: no row may run on
            await self._stop()
            raise

    def fail(self, error: BaseException) -> None:
        """End `run` with this error."""
        if self._fatal is not None and not self._fatal.done():
            self._fatal.set_exception(error)

    def close_admission(self) -> None:
        """No more rows start."""
        self.is_closing = True

    def usual_row_s(self) -> float:
        """Seconds that 95 of 100 rows need at most, by the last thousand; 0 before the first."""
        if self._latencies:
            self._usual_s = float(
                np.percentile(np.fromiter(self._latencies, float), _SLOWEST_SHARE)
            )
            self._latencies = deque(self._latencies, maxlen=1000)
        return self._usual_s

    def time_out(self, entry: InFlight) -> None:
        """Give this row up: it becomes a failed row."""
        entry.timed_out = True
        entry.task.cancel()

    def drop_lost(self) -> None:
        """Abort rows of shards that another worker has committed."""
        for entry in self.in_flight.values():
            if entry.row.shard.is_lost:
                entry.task.cancel()

    def cut_short(self, slot_s: float) -> None:
        """The time is over: note the rows that had most of a job's time and did not finish."""
        now = time.monotonic()
        for entry in self.in_flight.values():
            ran_s = now - entry.since_s
            if ran_s > slot_s / 2:
                row = entry.row
                note = RowRecord(row.number, journal.CUT_SHORT, b"", latency_s=ran_s)
                self._ledger.finish(row.shard, note)

    def _new_window(self, limits: EngineLimits) -> Window:
        return Window(
            min_rows=limits.max_running_requests,
            max_rows=self._max_rows_in_flight or 4 * limits.max_running_requests,
            max_tokens=2 * limits.max_total_tokens,
            stream=self._stream,
        )

    # ------------------------------------------------------------ rows in

    async def _feed(self) -> None:
        await self._try_suspects()
        while await self._fill():
            while self._queue:
                if not self._start_at_once():
                    await self._start_first()

    async def _try_suspects(self) -> None:
        """Each group alone, so that the engine's next death says more than the last."""
        while (group := self.suspects.next_group()) is not None:
            self._queue.extendleft(reversed(group))
            for _ in group:
                await self._start_first()
            await self._window.drained()

    async def _fill(self) -> bool:
        """More rows for the queue, as many as are ready, up to a window of them, in good order;
        False where there will be no more."""
        rows = self._incoming  # an engine that dies meanwhile must not take them along
        while not self._ended and (not rows or self._preparation.has_ready):
            chunk = await self._preparation.next()
            if chunk is None:
                self._ended = True
                break
            for shard in chunk.opened:
                self._ledger.started(shard)
            rows += chunk.rows
            if len(rows) >= self._window.max_rows:
                break
        self._queue.extend(admission_order(rows, is_last=self._ended))
        self._incoming = []
        return bool(self._queue) or not self._ended

    async def _start_first(self) -> None:
        """The first row of the queue leaves it at the moment when it is in flight."""
        if self._start_at_once():
            return
        request: PreparedRequest = self._queue[0].request
        await self._window.enter(request.num_tokens)
        if self.is_closing:
            self._window.leave(request.num_tokens)
            await asyncio.Event().wait()
        self._launch(self._queue.popleft())

    def _start_at_once(self) -> bool:
        """Start the first row of the queue; False where it must wait for room."""
        row = self._queue[0]
        if row.shard.is_lost:
            self._queue.popleft()
            self.report.num_recovered += 1
            return True
        failure = row.failure
        cuts, longest_s = 0, 0.0
        if row.shard.cut_short:
            cuts, longest_s = row.shard.cut_short.get(row.number, (0, 0.0))
        if failure is not None or cuts >= _MAX_CUTS:
            self.report.add_row(row)
            self._queue.popleft()
            self._finish_failed(row, failure or _TOO_LONG, latency_s=longest_s)
            return True
        if self.is_closing or not self._window.fits(row.request.num_tokens):
            return False
        self._window.take(row.request.num_tokens)
        self._launch(self._queue.popleft())
        return True

    def _launch(self, row: BatchRow) -> None:
        """Give a row to the engine, whose place in the window is taken."""
        request: PreparedRequest = row.request
        if not row.tries:
            self.report.add_row(row)
            self.report.add_model(row.model, self._engine.model_names)
        task = asyncio.create_task(self._answer(row, request))
        self.in_flight[row.index] = InFlight(row, task, time.monotonic())
        task.add_done_callback(self._on_done)

    # ------------------------------------------------------------ answers out

    async def _answer(self, row: BatchRow, request: PreparedRequest) -> None:
        entry: InFlight | None = None
        try:
            answer = await self._ask(row, request)
        except (EngineError, IncompleteRunError):
            raise
        except asyncio.CancelledError:
            entry = self.in_flight.get(row.index)
            if entry is not None and entry.timed_out:
                seconds = time.monotonic() - entry.since_s
                late = f"no answer after {seconds:.0f} s (--row-timeout)"
                self._finish_failed(row, Failure("row_timeout", late, 504), latency_s=seconds)
            elif entry is None or not row.shard.is_lost:
                raise
            else:
                self.report.num_recovered += 1
        except ROW_ERRORS as error:
            self._finish_failed(row, Failure.of(error))
        else:
            self._finish_answered(row, answer)
        del self.in_flight[row.index]
        self._window.leave(request.num_tokens)

    async def _ask(self, row: BatchRow, request: PreparedRequest) -> RowAnswer:
        attempts = 1
        while True:
            try:
                return await self._engine.answer(request)
            except QueueFullError:
                # The user has set a limit that is lower than the window.
                await asyncio.sleep(_QUEUE_FULL_WAIT_S)
            except (EngineError, IncompleteRunError):
                raise
            except ROW_ERRORS as error:
                wait_s = self._policy.wait_before_retry(Failure.of(error), attempts)
                if wait_s is None:
                    raise
                attempts += 1
                self.report.num_retries += 1
                await asyncio.sleep(wait_s)

    def _finish_answered(self, row: BatchRow, answer: RowAnswer) -> None:
        self.last_finish_s = now = time.monotonic()
        self.num_finished_ok += 1
        self.num_guilty_in_a_row = 0
        latency_s = now - self.in_flight[row.index].since_s
        self._latencies.append(latency_s)
        self.report.add_answer(row, answer)
        record = RowRecord(
            row.number,
            journal.OK,
            self._encoder.encode(self._records.answer(row, answer.body)),
            row.tries + 1,
            answer.num_prompt_tokens,
            answer.num_output_tokens,
            answer.num_cached_tokens,
            latency_s,
        )
        self._keep(row, record)

    def _finish_failed(
        self, row: BatchRow, failure: Failure, *, latency_s: float = 0.0, guilty: bool = False
    ) -> None:
        self._policy.before_failure(row, failure)
        self.last_finish_s = time.monotonic()
        self.report.add_failure(row, failure)
        payload = self._encoder.encode(self._records.failure(row, failure))
        status = journal.QUARANTINED if guilty else journal.FAILED
        record = RowRecord(row.number, status, payload, row.tries + 1, latency_s=latency_s)
        self._keep(row, record)
        self._policy.after_failure(self.report, len(self._queue) + len(self.in_flight))

    def _keep(self, row: BatchRow, record: RowRecord) -> None:
        self._ledger.finish(row.shard, record)
        if self._stream is not None:
            self._stream.add(row.index, record.payload)

    def _accuse(self, rows: list[BatchRow]) -> None:
        """The engine died with these in it."""
        guilty = self.suspects.engine_died(rows) if rows else None
        if guilty is not None:
            why = Failure(
                "engine_killed",
                f"the engine died {guilty.tries + 1} times with this row, the last time with it "
                "alone",
                500,
                "server_error",
            )
            self.report.num_quarantined += 1
            self.num_guilty_in_a_row += 1
            self._finish_failed(guilty, why, guilty=True)

    # ------------------------------------------------------------ ends

    def _on_done(self, task: asyncio.Task[None]) -> None:
        """A row's task raises only what ends the run."""
        if task.cancelled() or self._fatal is None or self._fatal.done():
            return
        error = task.exception()
        if error is not None:
            self._fatal.set_exception(error)

    async def _until_fatal(self, work: Coroutine[Any, Any, None]) -> None:
        """Await `work`, but no longer than until `fail` is called or a row's task has failed."""
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

    async def _stop(self) -> list[BatchRow]:
        """Abort the rows in flight (cancelling a row's task aborts its request); returns them."""
        entries = list(self.in_flight.values())
        for entry in entries:
            entry.task.cancel()
        await asyncio.gather(*(entry.task for entry in entries), return_exceptions=True)
        self.in_flight.clear()
        return [entry.row for entry in entries]


def hung(seconds: float) -> EngineDeadError:
    """An engine that holds rows and makes no step is as good as dead."""
    return EngineDeadError(f"the engine made no step for {seconds:.0f} s")
