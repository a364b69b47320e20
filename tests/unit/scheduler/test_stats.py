"""What a scheduler says of its requests and pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

MakeBench = Callable[..., Any]


def test_gauges_say_who_waits_and_who_runs(make_bench: MakeBench) -> None:
    bench = make_bench(max_running=2, num_pages=64, page_size=4, radix=False)
    for i in range(5):
        bench.add(i, [i] * 5, 9, ignore_eos=True)
    bench.step()
    stats = bench.scheduler.stats()
    assert (stats.num_running, stats.num_waiting) == (2, 3)
    assert (stats.num_free_pages, stats.num_cached_pages, stats.num_total_pages) == (60, 0, 64)
    bench.run()
    stats = bench.scheduler.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_free_pages) == (0, 0, 64)
    assert (stats.prompt_tokens_total, stats.output_tokens_total) == (25, 45)


def test_gauges_tell_cached_pages_in_use_from_those_that_can_be_had(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.add(0, list(range(20)), 9, ignore_eos=True)
    while not bench.outputs[0]:
        bench.step()
    stats = bench.scheduler.stats()
    assert stats.num_cached_pages > 0 and stats.num_evictable_pages == 0
    bench.run()
    stats = bench.scheduler.stats()
    assert stats.num_evictable_pages == stats.num_cached_pages > 0


def test_how_long_a_request_waited_for_its_first_admission(
    monkeypatch: pytest.MonkeyPatch, make_bench: MakeBench
) -> None:
    now = 0.0
    monkeypatch.setattr("hpcserve.scheduler.request.time.monotonic", lambda: now)
    bench = make_bench(max_running=1)
    bench.add(0, [1] * 5, 3, ignore_eos=True)
    now = 2.0
    bench.add(1, [2] * 5, 3, ignore_eos=True)
    one, two = bench.scheduler.requests
    now = 5.0
    bench.step()
    assert one.queued_s == 5.0
    bench.scheduler._retract(one)
    now = 9.0
    bench.run()
    assert (one.queued_s, two.queued_s) == (5.0, 7.0)
