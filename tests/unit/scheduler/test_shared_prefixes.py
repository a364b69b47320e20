"""Prefixes that requests share, in one step and one after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

MakeBench = Callable[..., Any]


def test_a_shared_prefix_is_computed_once_even_within_one_step(make_bench: MakeBench) -> None:
    bench = make_bench(num_pages=200, chunk=512, max_running=8)
    prefix = list(range(40))
    for i in range(8):
        bench.add(i, [*prefix, i], 1)
    bench.run()
    assert bench.executor.num_computed_tokens == 41 + 7
    assert [bench.finished[i][1] for i in range(8)] == [0] + [40] * 7


def test_a_prefix_under_way_in_chunks_is_not_computed_twice(make_bench: MakeBench) -> None:
    bench = make_bench(num_pages=200, chunk=16, max_running=8, context=400)
    prefix = [i % bench.VOCAB for i in range(200)]
    for i in range(4):
        bench.add(i, [*prefix, i], 1)
    bench.run()
    assert bench.executor.num_computed_tokens < 201 + 3 * 20


def test_chunks_end_at_the_end_of_a_page(make_bench: MakeBench) -> None:
    bench = make_bench(chunk=18, page_size=4, depth=1)
    bench.add(0, list(range(40)), 1)
    counts = []
    while (step := bench.scheduler.schedule()) is not None:
        counts += step.num_scheduled.tolist()
        bench.scheduler.update(bench.executor.submit(step).result())
    assert counts == [16, 16, 8]


def test_cached_tokens_are_whole_pages_and_leave_one_to_compute(make_bench: MakeBench) -> None:
    bench = make_bench()
    prompt = list(range(16))
    for i in range(2):
        bench.add(i, prompt, 2, ignore_eos=True)
        bench.run()
    assert bench.finished[0][1] == 0
    assert bench.finished[1][1] == 12


def test_outputs_are_found_again_by_the_next_turn(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.add(0, list(range(10)), 11, ignore_eos=True)
    bench.run()
    bench.add(1, list(range(10)) + bench.outputs[0], 1)
    bench.run()
    assert bench.finished[1][1] == 20


def test_flush_cache_frees_every_page(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.add(0, list(range(30)), 5)
    bench.run()
    assert bench.scheduler.flush_cache() > 0
    assert bench.scheduler.stats().num_free_pages == 64
