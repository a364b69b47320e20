"""One process's share of a run: engines one after the other, until nothing is left to do."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from hpcserve.batch import progress
from hpcserve.batch.deadline import Deadline
from hpcserve.batch.durable import storage
from hpcserve.batch.energy import EnergyMeter
from hpcserve.batch.engine import Backend, RowEngine
from hpcserve.batch.idle import IdleWatch, idle_timeout_s
from hpcserve.batch.inputs import InputFile
from hpcserve.batch.lease import Claims, Owner
from hpcserve.batch.ledger import Ledger, OpenShard
from hpcserve.batch.manifest import Manifest
from hpcserve.batch.output import OutputRecords
from hpcserve.batch.policy import FailurePolicy
from hpcserve.batch.prepare import Preparation, usable_cores, usual_processes
from hpcserve.batch.report import BatchReport
from hpcserve.batch.row import RowDialect
from hpcserve.batch.row_maker import MakerRecipe, RowMaker
from hpcserve.batch.row_stream import RowStream
from hpcserve.batch.run_dir import RunDir, refuse_cancelled
from hpcserve.batch.runner import BatchRunner
from hpcserve.batch.scan import sha256_of, stat_of
from hpcserve.batch.watch import Limits, Watch
from hpcserve.batch.worker_status import WorkerFile, read_all, runs_without_progress
from hpcserve.config.batch import BatchConfig
from hpcserve.errors import (
    EngineError,
    EngineStartError,
    IncompleteRunError,
    InputError,
    NoProgressError,
    RunCancelledError,
)
from hpcserve.log import get_logger

log = get_logger(__name__)

_POLL_S = 0.5
_BEAT_S = 5.0
#: Deaths of engines that answered no row in between: then it is not the rows' fault.
_MAX_DEATHS = 25
_MAX_GUILTY = 3
_MAX_RUNS_WITHOUT_PROGRESS = 3


class Worker:
    """`run` returns when every row of the run is finished, by this worker or others.

    stream: for people.  rows: where finished rows go at once, beside the ledger.  is_needed: says
    that this process has more to do than rows, and must not end before the run does.
    """

    def __init__(
        self,
        backend: Backend,
        batch: BatchConfig,
        run_dir: RunDir,
        manifest: Manifest,
        inputs: list[InputFile],
        dialect: RowDialect,
        stream: TextIO,
        rows: RowStream | None = None,
        is_needed: Callable[[], bool] = lambda: False,
    ) -> None:
        self._rows = rows
        self._is_needed = is_needed
        self._has_left = False
        self._backend = backend
        self._batch = batch
        self._dir = run_dir
        self._manifest = manifest
        self._inputs = inputs
        self._dialect = dialect
        self._stream = stream
        self._readers = [one.reader(manifest.id_column) for one in inputs]
        self._stats = [stat_of(one.path) for one in inputs]
        self._owner = Owner.here()
        self._deadline = Deadline(batch.deadline, batch.deadline_margin_s)
        self._caught: list[signal.Signals] = []
        self._watch: Watch | None = None
        self._runner: BatchRunner | None = None
        self._num_deaths = 0
        self._is_starting = True
        self._told: Exception | None = None
        self._foreign: set[int] = run_dir.committed()
        self._rows_before = sum(manifest.shards[n].span.num_rows for n in self._foreign)
        self.report = BatchReport(num_total=manifest.num_rows, num_before=self._rows_before)
        self._energy = EnergyMeter(backend.num_gpus)
        self._file = WorkerFile(run_dir, self._owner, self.report, self._energy, backend)

    async def run(self) -> bool:
        """False where others finish the run: nothing was left to take, for long (`idle`).

        Raises IncompleteRunError, RunCancelledError, RowsFailedError, InputError, ...
        """
        names = [one.path.rsplit("/", 1)[-1] for one in self._manifest.scan.files]
        with storage(self._dir.path):
            self._claims = Claims(self._dir, self._manifest, self._owner)
            self._idle = IdleWatch(self._claims, idle_timeout_s(self._batch))
            self._file.publish()
        self._ledger = Ledger(self._dir, self._manifest, self._owner.name, self._claims.release)
        records = OutputRecords(names)
        shown = progress.shown(
            self.report,
            lambda: read_all(self._dir),
            self._stream,
            log_interval_s=self._batch.log_interval_s,
            # A bar and rows on one terminal would write over each other.
            as_bar=self._stream.isatty() and not (self._rows and sys.stdout.isatty()),
        )
        try:
            with shown, self._signals(), self._signs_of_life():
                while not (self._claims.all_committed() or self._has_left):
                    await self._engine_after_engine(records)
                    self._check_nothing_left_over()
                return not self._has_left
        except asyncio.CancelledError:
            if self._told is not None:
                raise self._told from None
            if not self._caught:
                raise
            raise self._stopped() from None
        except IncompleteRunError as error:
            if self._caught and self._caught[0] is signal.SIGINT:
                raise self._stopped() from None
            raise self._incomplete(error) from error
        finally:
            self._close()

    def _check_nothing_left_over(self) -> None:
        """What this worker took it has finished: else it would wait for itself for ever."""
        if not self._claims.all_committed() and self._claims.only_mine_left():
            raise IncompleteRunError("rows of this worker were left over")

    def _stopped(self) -> BaseException:
        text = f"stopped by {self._caught[0].name}; {self._so_far()}"
        if self._caught[0] is signal.SIGINT:
            print(text, file=self._stream)
            return KeyboardInterrupt()
        return self._incomplete(IncompleteRunError(f"stopped by {self._caught[0].name}"))

    def _incomplete(self, error: IncompleteRunError) -> Exception:
        """Exit 75 promises that running it again goes on; after some runs without a row it is no
        longer believed."""
        if self.report.num_rows == 0:
            runs = 1 + runs_without_progress(self._dir, self._owner)
            if runs >= _MAX_RUNS_WITHOUT_PROGRESS:
                return NoProgressError(f"{error}; the last {runs} runs finished no row at all")
        text = str(error)
        if "run the same command again" in text:
            report = self.report
            return IncompleteRunError(
                f"{text} ({report.num_finished:,} of {report.num_total:,} rows are finished)"
            )
        return IncompleteRunError(f"{text}; {self._so_far()}")

    def _so_far(self) -> str:
        report = self.report
        return (
            f"{report.num_finished:,} of {report.num_total:,} finished rows are kept in "
            f"{self._dir.path}; run the same command again to go on"
        )

    def _close(self) -> None:
        self._ledger.close()
        self._claims.close()
        for reader in self._readers:
            reader.close()
        with contextlib.suppress(IncompleteRunError):  # the end has its own reason already
            self._file.publish(ended=True)

    # ------------------------------------------------------------ engines

    async def _engine_after_engine(self, records: OutputRecords) -> None:
        """Until no shard is free; each engine that dies is followed by another."""
        preparation: Preparation | None = None
        try:
            while True:
                try:
                    self._is_starting = True
                    async with self._backend.open() as engine:
                        self._is_starting = False
                        self._file.engine_is_up()
                        if preparation is None:
                            preparation = self._preparation(engine)
                            runner, watch = self._new_runner(preparation, records)
                        await self._run_watched(runner, watch, engine)
                        return
                except EngineError as error:
                    if preparation is None:
                        raise
                    self._after_death(runner, error)
                finally:
                    self._file.engine_is_down()
        finally:
            if preparation is not None:
                preparation.close()

    def _preparation(self, engine: RowEngine) -> Preparation:
        maker = RowMaker(self._readers, self._dialect, engine.preparer)
        recipe = None
        if engine.recipe is not None:
            id_column = self._manifest.id_column
            recipe = MakerRecipe(self._inputs, id_column, self._dialect, engine.recipe)
        return Preparation(
            self._next_shard,
            self._readers,
            maker,
            poll_s=_POLL_S,
            recipe=recipe,
            num_processes=self._num_processes(),
        )

    def _num_processes(self) -> int:
        """That prepare rows: none where threads are through before those would be up."""
        given = self._batch.prepare_processes
        if given is not None:
            return given
        num_bytes = sum(one.size for one in self._manifest.scan.files)
        num_rows = self.report.num_total - self.report.num_before
        share = num_rows / max(1, self.report.num_total)
        return usual_processes(num_rows, round(num_bytes * share), usable_cores())

    def _new_runner(
        self, preparation: Preparation, records: OutputRecords
    ) -> tuple[BatchRunner, Watch]:
        batch = self._batch
        runner = BatchRunner(
            preparation,
            self._ledger,
            records,
            FailurePolicy(batch.errors, batch.max_error_rate, batch.retries),
            self._deadline,
            self.report,
            max_rows_in_flight=batch.max_rows_in_flight,
            stream=self._rows,
        )
        self._runner = runner
        limits = Limits(batch.row_timeout_s, batch.stall_timeout_s, batch.drain_s)
        self._watch = Watch(runner, self._ledger, self._deadline, self._dir, limits, self._publish)
        if self._caught:
            self._watch.stop(self._caught[0])
        return runner, self._watch

    async def _run_watched(self, runner: BatchRunner, watch: Watch, engine: RowEngine) -> None:
        watching = asyncio.create_task(watch.during(engine))
        try:
            await runner.run(engine)
            await self._ledger.settle()
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            # What was finished is on the disk before anything else happens, if the disk works.
            with contextlib.suppress(IncompleteRunError):
                await self._ledger.sync()

    def _after_death(self, runner: BatchRunner, error: EngineError) -> None:
        """Raise IncompleteRunError where another engine would not do better."""
        self.report.num_engine_deaths += 1
        if runner.num_finished_ok:
            self._num_deaths = 0
            runner.num_finished_ok = 0
        self._num_deaths += 1
        if isinstance(error, EngineStartError) or self._num_deaths > _MAX_DEATHS:
            raise IncompleteRunError(str(error)) from error
        if runner.num_guilty_in_a_row >= _MAX_GUILTY:
            raise IncompleteRunError(
                f"{error}; {_MAX_GUILTY} rows in a row did that, each alone: it is not the rows"
            ) from error
        if runner.is_closing:
            raise IncompleteRunError(str(error)) from error
        log.warning("%s; starting another (%d rows under suspicion)", error, len(runner.suspects))

    # ------------------------------------------------------------ shards

    def _next_shard(self) -> OpenShard | None:
        """In the reading thread. Raises StopIteration at the end, InputError where a file changed."""
        with storage(self._dir.leases):
            claim = self._claims.next()
            if claim is None:
                if self._claims.all_committed() or self._claims.only_mine_left():
                    raise StopIteration
                self._has_left = self._may_leave()
                if self._has_left:
                    raise StopIteration
                return None
            self._idle.end()
        self._check_unchanged(claim.shard.file)
        shard = self._ledger.open(claim)
        self.report.num_recovered += shard.span.num_rows - shard.num_left
        self._count_before()
        return shard

    def _may_leave(self) -> bool:
        if self._claims.has_shards or self._is_needed():
            return False
        return self._idle.is_over()

    def _check_unchanged(self, number: int) -> None:
        """Raises InputError where a file is not what it was. A span of text has a checksum too;
        rows of tables have none."""
        path = self._inputs[number].path
        now = stat_of(path)
        if now == self._stats[number]:
            return
        if sha256_of(path) != self._manifest.scan.files[number].sha256:
            raise InputError(f"{path} has changed since the run began")
        self._stats[number] = now  # touched, or copied over itself

    def _count_before(self) -> None:
        self.report.num_before = self._rows_before + self.report.num_recovered

    def _publish(self) -> None:
        committed = self._dir.committed()
        self._ledger.lose(committed)
        if self._runner is not None:
            self._runner.drop_lost()
        done = committed - self._foreign - self._claims.mine
        self._foreign |= done
        self._rows_before += sum(self._manifest.shards[n].span.num_rows for n in done)
        self._count_before()
        self._file.publish()

    # ------------------------------------------------------------ signals

    @contextlib.contextmanager
    def _signs_of_life(self) -> Iterator[None]:
        """While an engine starts, which takes minutes, nobody else gives any, or looks whether the
        run is cancelled."""
        beating = asyncio.create_task(self._beat(asyncio.current_task()))
        try:
            yield
        finally:
            beating.cancel()

    async def _beat(self, task: asyncio.Task[Any] | None) -> None:
        while True:
            await asyncio.sleep(_BEAT_S)
            if not self._is_starting:
                continue
            self._file.publish()
            try:
                refuse_cancelled(self._dir)
            except (RunCancelledError, IncompleteRunError) as error:
                self._told = error
                if task is not None:
                    task.cancel()
                return

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and the early warnings let rows in flight finish; Ctrl-C does not wait."""
        task = asyncio.current_task()
        if task is None or threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()

        def stop(which: signal.Signals) -> None:
            self._caught.append(which)
            if self._watch is None or self._is_starting or which is signal.SIGINT:
                task.cancel()  # nothing is in flight that could be waited for
            else:
                self._watch.stop(which)

        wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
        for which in wanted:
            loop.add_signal_handler(which, stop, which)
        try:
            yield
        finally:
            for which in wanted:
                loop.remove_signal_handler(which)
