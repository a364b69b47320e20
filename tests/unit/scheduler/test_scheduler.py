"""The scheduler against a worker that checks every page it reads."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcserve.errors import ContextLengthError, EngineError, QueueFullError
from hpcserve.ipc.messages import EngineCoreRequest
from hpcserve.sampling_params import SamplingParams
from hpcserve.scheduler.scheduler import Scheduler

MakeBench = Callable[..., Any]


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("radix", [True, False])
@pytest.mark.parametrize("page_size", [1, 16])
def test_text_does_not_depend_on_scheduling(
    depth: int, radix: bool, page_size: int, make_bench: MakeBench
) -> None:
    rng = random.Random(depth)
    bench = make_bench(depth=depth, radix=radix, page_size=page_size, num_pages=480 // page_size)
    shared = [rng.randrange(bench.VOCAB) for _ in range(40)]
    prompts = [[*shared[: rng.randrange(1, 40)], rng.randrange(bench.VOCAB)] for _ in range(30)]
    for i, prompt in enumerate(prompts):
        bench.add(i, prompt, 30)
    bench.run()
    for i, prompt in enumerate(prompts):
        assert bench.outputs[i] == bench.expected(prompt, 30)


def test_a_stop_id_counts_from_the_last_of_min_tokens_and_is_named(make_bench: MakeBench) -> None:
    prompt = [1, 2, 3]
    bench = make_bench(depth=1)
    free = bench.expected(prompt, 12, ignore_eos=True)
    bench.add(0, prompt, 12, stop_token_ids=(free[3],), min_tokens=4, ignore_eos=True)
    bench.add(1, prompt, 2, ignore_eos=True)
    ended = {}
    while bench.scheduler.has_requests:
        step = bench.scheduler.schedule()
        assert step is not None
        for update in bench.scheduler.update(bench.executor.submit(step).result()):
            if update.finished is not None:
                ended[update.request.request_id] = update
    assert ended[0].request.output_token_ids == free[:4]
    assert (ended[0].finished.finish_reason, ended[0].finished.stop_token_id) == ("stop", free[3])
    assert (ended[1].finished.finish_reason, ended[1].finished.stop_token_id) == ("length", None)


def test_stop_ids_wait_for_min_tokens(make_bench: MakeBench) -> None:
    prompt = [1, 2, 3]
    bench = make_bench()
    free = bench.expected(prompt, 12, ignore_eos=True)
    bench.add(0, prompt, 12, stop_token_ids=(free[2], free[5]), min_tokens=4, ignore_eos=True)
    bench.run()
    assert bench.outputs[0] == free[:6]
    assert bench.finished[0][0] == "stop"


def test_a_prompt_that_leaves_no_room_is_refused_with_both_numbers(make_bench: MakeBench) -> None:
    bench = make_bench(context=120)
    with pytest.raises(ContextLengthError, match=r"120 tokens.*120"):
        bench.add(0, [1] * 120)
    bench.add(1, [1] * 119)
    bench.run()
    assert len(bench.outputs[1]) == 1


def test_the_queue_has_a_limit(make_bench: MakeBench) -> None:
    bench = make_bench(max_queued=2)
    bench.add(0, [1], 1)
    bench.add(1, [1], 1)
    with pytest.raises(QueueFullError):
        bench.add(2, [1], 1)


def test_frontends_end_their_own_requests_alone(make_bench: MakeBench) -> None:
    bench = make_bench()
    tokens, params = np.array([1], np.int32), SamplingParams(max_tokens=5)
    for frontend in (b"one", b"other"):
        for number in range(2):
            bench.scheduler.add(EngineCoreRequest(number, tokens, params), frontend)

    def left() -> list[tuple[bytes, int]]:
        return [request.key for request in bench.scheduler.requests]

    assert not bench.scheduler.abort(0, b"nobody")
    assert bench.scheduler.abort(0, b"other")
    assert left() == [(b"one", 0), (b"one", 1), (b"other", 1)]
    bench.scheduler.abort_all(b"one")
    assert left() == [(b"other", 1)]


def test_an_idle_scheduler_notices_what_was_lost(make_bench: MakeBench) -> None:
    def idle() -> Scheduler:
        bench = make_bench()
        bench.add(0, list(range(10)), 2)
        bench.run()
        return bench.scheduler

    idle().check_idle()
    locked = idle()
    cache = locked._memory.cache
    cache.lock(cache.extend(cache.root, np.arange(8, dtype=np.int32), 0, 2)[0])
    short_of_a_page = idle()
    short_of_a_page._memory.allocator.allocate(1)
    short_of_a_slot = idle()
    short_of_a_slot._slots.take()
    for scheduler in (locked, short_of_a_page, short_of_a_slot):
        with pytest.raises(EngineError, match="lost track"):
            scheduler.check_idle()


def test_unseeded_requests_draw_seeds_that_repeat_with_the_engine(make_bench: MakeBench) -> None:
    seeds = []
    for _ in range(2):
        bench = make_bench()
        for i in range(3):
            bench.add(i, [1], 1)
        seeds.append([request.seed for request in bench.scheduler.requests])
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == 3


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32),
    depth=st.integers(1, 3),
    page_size=st.sampled_from([1, 4, 16]),
    pool_tokens=st.sampled_from([64, 128, 320]),
    chunk=st.sampled_from([1, 8, 33, 200]),
    policy=st.sampled_from(["fcfs", "lpm", "priority"]),
    radix=st.booleans(),
)
def test_random_lives(
    seed: int,
    depth: int,
    page_size: int,
    pool_tokens: int,
    chunk: int,
    policy: str,
    radix: bool,
    make_bench: MakeBench,
) -> None:
    """Random arrivals, aborts, flushes and a tight pool: no page leaks, no text changes."""
    rng = random.Random(seed)
    bench = make_bench(
        num_pages=pool_tokens // page_size,
        page_size=page_size,
        max_running=rng.choice([1, 3, 9]),
        chunk=chunk,
        policy=policy,
        depth=depth,
        radix=radix,
        context=60,
    )
    prompts: dict[int, tuple[list[int], int]] = {}
    aborted: set[int] = set()
    stems = [[rng.randrange(bench.VOCAB) for _ in range(30)] for _ in range(3)]
    for _ in range(40):
        action = rng.random()
        if action < 0.5:
            request_id = len(prompts)
            stem = rng.choice(stems)[: rng.randrange(0, 30)]
            if prompts and rng.random() < 0.5:  # goes on where another is, or was
                other = rng.randrange(len(prompts))
                stem = (prompts[other][0] + bench.outputs[other])[:48]
            prompt = stem + [rng.randrange(bench.VOCAB) for _ in range(rng.randrange(1, 8))]
            prompts[request_id] = (prompt, rng.randrange(1, 60 - len(prompt) + 1))
            bench.add(request_id, *prompts[request_id], priority=rng.randrange(3))
        elif action < 0.6 and prompts:
            victim = rng.randrange(len(prompts))
            if bench.scheduler.abort(victim):
                aborted.add(victim)
        elif action < 0.63:
            bench.scheduler.flush_cache()
        else:
            bench.step()
    bench.run()
    for request_id, (prompt, max_tokens) in prompts.items():
        want = bench.expected(prompt, max_tokens)
        got = bench.outputs[request_id]
        if request_id in aborted:
            assert got == want[: len(got)]
        else:
            assert got == want
            assert bench.finished[request_id][0] == ("stop" if want[-1] == bench.EOS else "length")
