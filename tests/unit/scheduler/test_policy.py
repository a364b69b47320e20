"""Who goes first, and who is retracted last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

MakeBench = Callable[..., Any]


def test_longest_prefix_match_goes_first(make_bench: MakeBench) -> None:
    bench = make_bench(max_running=1, policy="lpm")
    bench.add(0, list(range(20)), 1)
    bench.run()
    bench.add(1, [40, 41, 42], 1)
    bench.add(2, list(range(20)), 1)
    bench.run()
    assert list(bench.finished) == [0, 2, 1]


def test_a_stranger_is_not_passed_over_for_ever(
    monkeypatch: pytest.MonkeyPatch, make_bench: MakeBench
) -> None:
    monkeypatch.setattr("hpcserve.scheduler.policy.MAX_PASSED_OVER", 3)
    bench = make_bench(max_running=1, policy="lpm")
    bench.add(0, list(range(20)), 1)
    bench.run()
    bench.add(1, [40, 41, 42], 1)
    for i in range(2, 10):
        bench.add(i, list(range(20)), 1)
    bench.run()
    assert list(bench.finished) == [0, 2, 3, 4, 1, 5, 6, 7, 8, 9]


def test_priority_goes_first(make_bench: MakeBench) -> None:
    bench = make_bench(max_running=1, policy="priority")
    for i, priority in enumerate([0, 0, 5]):
        bench.add(i, [i], 1, priority=priority)
    bench.run()
    assert list(bench.finished) == [2, 0, 1]


def test_priority_is_retracted_last(make_bench: MakeBench) -> None:
    """The one that came last stays, since the others are of less importance."""
    bench = make_bench(num_pages=8, page_size=4, max_running=3, context=32, policy="priority")
    retracted = set()
    for i, priority in enumerate([0, 1, 5]):
        bench.add(i, [10 * i, 10 * i + 1], 28, ignore_eos=True, priority=priority)
        bench.step()
    while bench.step():
        retracted |= {r.request_id for r in bench.scheduler.requests if r.num_retractions}
    assert retracted and 2 not in retracted
    assert next(iter(bench.finished)) == 2
