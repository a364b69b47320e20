"""Looks after a run while it runs: time, signals, hung rows and engines, syncs, signs of life."""

from __future__ import annotations

import asyncio
import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from hpcserve.batch.deadline import Deadline
from hpcserve.batch.engine import RowEngine
from hpcserve.batch.ledger import Ledger
from hpcserve.batch.run_dir import RunDir, refuse_cancelled
from hpcserve.batch.runner import BatchRunner, hung
from hpcserve.errors import EngineDeadError, EngineError, IncompleteRunError
from hpcserve.log import get_logger

log = get_logger(__name__)

_TICK_S = 0.1
_SYNC_S = 1.0
_STATUS_S = 2.0
#: Share of the time for a stall after which the engine is asked.
_ASK_AFTER = 0.25
#: That the engine gets to say how far it is; syncs and the end of the time wait for it.
_ASK_S = 5.0


@dataclass(frozen=True)
class Limits:
    """Seconds. row_timeout_s: None is no limit.  stall_s: without a step of the engine.

    drain_s: that rows in flight get after a signal.
    """

    row_timeout_s: float | None
    stall_s: float
    drain_s: float


class Watch:
    """`stop` may be called at any time; `during` runs beside the runner."""

    def __init__(
        self,
        runner: BatchRunner,
        ledger: Ledger,
        deadline: Deadline,
        run_dir: RunDir,
        limits: Limits,
        publish_status: Callable[[], None],
    ) -> None:
        self._runner = runner
        self._ledger = ledger
        self._deadline = deadline
        self._run_dir = run_dir
        self._limits = limits
        self._publish_status = publish_status
        self._why = ""
        self._drain_until = math.inf
        self._started_s = time.monotonic()
        self._steps: tuple[int, float] = (-1, time.monotonic())

    def stop(self, which: signal.Signals) -> None:
        """Finish what is in flight, soon; a second time: at once."""
        if self._why:
            self._drain_until = 0.0
            return
        self._close(f"stopped by {which.name}", self._limits.drain_s)

    async def during(self, engine: RowEngine) -> None:
        """Never returns; what it finds ends the runner's `run`."""
        next_sync = next_status = time.monotonic()
        self._steps = (-1, time.monotonic())
        try:
            while True:
                now = time.monotonic()
                if now >= next_sync:
                    next_sync = now + _SYNC_S
                    await self._ledger.sync()
                    refuse_cancelled(self._run_dir)
                    self._check_rows()
                if now >= next_status:
                    next_status = now + _STATUS_S
                    self._publish_status()
                    await self._check_steps(engine)
                self._check_time()
                await asyncio.sleep(_TICK_S)
        except Exception as error:  # noqa: BLE001 - raised where the run waits; nobody awaits this
            self._runner.fail(error)

    def _check_time(self) -> None:
        left_s = self._deadline.seconds_left()
        usual_s = self._runner.usual_row_s() if left_s < math.inf else 0.0
        if not self._why and not self._deadline.admits(usual_s):
            self._close(
                f"the job ends in {left_s:.0f} s, and a row may take {usual_s:.0f} s", math.inf
            )
        if not self._why:
            return
        if not self._runner.in_flight or time.monotonic() >= self._drain_until or left_s <= 0:
            if left_s <= 0:
                self._runner.cut_short(time.monotonic() - self._started_s)
            raise IncompleteRunError(self._why)

    def _close(self, why: str, drain_s: float) -> None:
        log.info("%s: no more rows start, %d are in flight", why, len(self._runner.in_flight))
        self._why = why
        self._drain_until = time.monotonic() + drain_s
        self._runner.close_admission()

    def _check_rows(self) -> None:
        limit_s = self._limits.row_timeout_s
        if limit_s is None:
            return
        oldest = time.monotonic() - limit_s
        for entry in list(self._runner.in_flight.values()):
            if entry.since_s < oldest and not entry.timed_out:
                self._runner.time_out(entry)

    async def _check_steps(self, engine: RowEngine) -> None:
        """An engine that holds rows must make steps; asked only when no row has finished lately."""
        now = time.monotonic()
        quiet_s = now - max(self._runner.last_finish_s, self._steps[1])
        if not self._runner.in_flight or quiet_s < self._limits.stall_s * _ASK_AFTER:
            return
        try:
            num_steps = await asyncio.wait_for(engine.num_steps(), _ASK_S)
        except EngineDeadError:
            raise
        except (EngineError, asyncio.TimeoutError) as error:
            # Busy with one long step, or starting a replica again: silence is no death by itself.
            log.debug("the engine does not say how many steps it made: %r", error)
            num_steps = self._steps[0]
        if num_steps != self._steps[0]:
            self._steps = (num_steps, now)
        elif quiet_s >= self._limits.stall_s:
            raise hung(quiet_s)
