"""Gauges of several replicas as those of one engine."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from hpcserve.ipc.messages import SchedulerStats


def total_stats(stats: Sequence[SchedulerStats]) -> SchedulerStats:
    """The sums, field by field: pages, requests and counters all add up."""
    names = [field.name for field in msgspec.structs.fields(SchedulerStats)]
    return SchedulerStats(**{name: sum(getattr(one, name) for one in stats) for name in names})
