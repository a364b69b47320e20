"""A pool that is too small: who gives way, and goes on later as if nothing had been."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

MakeBench = Callable[..., Any]


def test_a_pool_that_is_too_small_retracts_and_loses_nothing(make_bench: MakeBench) -> None:
    bench = make_bench(num_pages=14, page_size=4, context=56, chunk=64)
    prompts = [[i, i + 1, i + 2] for i in range(12)]
    for i, prompt in enumerate(prompts):
        bench.add(i, prompt, 45, ignore_eos=True)
    bench.run()
    assert bench.scheduler.stats().num_retracted_total > 0
    for i, prompt in enumerate(prompts):
        assert bench.outputs[i] == bench.expected(prompt, 45, ignore_eos=True)
        assert bench.finished[i] == ("length", 0)  # its own tokens, found again, are no reuse
    assert bench.scheduler.stats().cached_tokens_total == 0


def test_who_was_retracted_goes_on_before_those_who_came_later(make_bench: MakeBench) -> None:
    bench = make_bench(num_pages=8, page_size=4, max_running=2, context=32)
    for i in range(4):
        bench.add(i, [i, i + 1, i + 2], 21, ignore_eos=True)
    bench.run()
    assert bench.scheduler.stats().num_retracted_total > 0
    assert list(bench.finished) == [0, 1, 2, 3]


@pytest.mark.parametrize("second", [20, 1])
def test_prompts_under_way_keep_the_pages_that_they_still_need(
    second: int, make_bench: MakeBench
) -> None:
    """A chunk of 9 leaves room for a short prompt beside 8 tokens of a long one."""
    bench = make_bench(num_pages=7, page_size=4, context=28, chunk=9)
    bench.add(0, list(range(27)), 1)
    bench.add(1, list(range(30, 30 + second)), 1)
    bench.run()
    assert bench.scheduler.stats().num_retracted_total == 0
    assert list(bench.finished) == [0, 1]


def test_who_gives_way_has_no_row_in_the_step(make_bench: MakeBench) -> None:
    """The other decodes already when a prompt's last chunk finds no page: it is too late to
    take that one's, though it came later."""
    bench = make_bench(num_pages=11, page_size=4, max_running=2, context=44, chunk=9)
    requests = [(list(range(40)), 4), ([7], 20)]
    for i, (prompt, length) in enumerate(requests):
        bench.add(i, prompt, length, ignore_eos=True)
    bench.run()
    assert bench.scheduler.stats().num_retracted_total > 0
    for i, (prompt, length) in enumerate(requests):
        assert bench.outputs[i] == bench.expected(prompt, length, ignore_eos=True)


def test_what_is_computed_again_after_a_retraction_is_shared_rightly(make_bench: MakeBench) -> None:
    """A prompt that comes back with outputs, after the cache was emptied, publishes its prompt
    alone: whoever continues it finds what really was computed."""
    bench = make_bench(num_pages=8, page_size=4, max_running=2, context=32, chunk=64)
    prompts = [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    for i, prompt in enumerate(prompts):
        bench.add(i, prompt, 20, ignore_eos=True)
    while not bench.scheduler.stats().num_retracted_total:
        bench.step()
    bench.scheduler.flush_cache()
    bench.run()
    again = prompts[1] + bench.outputs[1][:6]
    bench.add(2, again, 8, ignore_eos=True)
    bench.run()
    assert bench.outputs[2] == bench.expected(again, 8, ignore_eos=True)


def test_a_slot_may_be_taken_again_in_the_step_that_released_it(make_bench: MakeBench) -> None:
    """Who gives way has no row in the step, and workers apply releases before new requests."""
    bench = make_bench(num_pages=9, page_size=4, max_running=3, context=32, policy="priority")
    prompts = [[i, i + 1, i + 2] for i in range(3)] + [[9]] * 3
    lengths = [25] * 3 + [2] * 3
    for i, prompt in enumerate(prompts):
        bench.add(i, prompt, lengths[i], ignore_eos=True, priority=int(i > 2))
        bench.step()
    schedule, reused = bench.scheduler.schedule, []

    def watch():
        taken = {request.slot for request in bench.scheduler.requests} - {-1}
        step = schedule()
        if step is not None:
            reused.extend(
                taken & set(step.released_slots) & {new.slot for new in step.new_requests}
            )
        return step

    bench.scheduler.schedule = watch
    bench.run()
    assert reused
    for i, prompt in enumerate(prompts):
        assert bench.outputs[i] == bench.expected(prompt, lengths[i], ignore_eos=True)
