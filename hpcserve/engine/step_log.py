"""The core's own report: one line every few seconds while it works."""

from __future__ import annotations

import time

from hpcserve.ipc.messages import SchedulerStats
from hpcserve.log import get_logger
from hpcserve.scheduler.lockstep import LockstepScheduler
from hpcserve.scheduler.scheduler import Scheduler

logger = get_logger(__name__)

_INTERVAL_S = 10.0


class StepLog:
    def __init__(self, scheduler: Scheduler | LockstepScheduler) -> None:
        self._scheduler = scheduler
        self._last_s = time.monotonic()
        self._last: SchedulerStats = scheduler.stats()

    def on_step(self, now_s: float) -> None:
        """Report if it is time to."""
        if now_s - self._last_s < _INTERVAL_S:
            return
        stats = self._scheduler.stats()
        logger.info(_line(self._last, stats, now_s - self._last_s))
        self._last_s, self._last = now_s, stats

    def on_idle(self) -> None:
        """Start the next interval afresh, so that idle time does not count as slow."""
        self._last_s, self._last = time.monotonic(), self._scheduler.stats()


def _line(before: SchedulerStats, now: SchedulerStats, seconds: float) -> str:
    prompt = now.prompt_tokens_total - before.prompt_tokens_total
    cached = now.cached_tokens_total - before.cached_tokens_total
    output = now.output_tokens_total - before.output_tokens_total
    used = now.num_total_pages - now.num_free_pages - now.num_cached_pages
    return (
        f"{now.num_running} running, {now.num_waiting} waiting; "
        f"in {(prompt - cached) / seconds:,.0f} tok/s (+{cached / seconds:,.0f} cached), "
        f"out {output / seconds:,.0f} tok/s; KV {100 * used / now.num_total_pages:.0f} % private, "
        f"{100 * now.num_cached_pages / now.num_total_pages:.0f} % shared; "
        f"{now.num_retracted_total} retracted"
    )
