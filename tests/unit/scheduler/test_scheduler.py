"""The scheduler against a worker that checks every page it reads."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcserve.config.scheduler import SchedulerConfig
from hpcserve.engine.core_outputs import by_frontend
from hpcserve.engine.executor import StepHandle
from hpcserve.errors import ContextLengthError, EngineError, QueueFullError
from hpcserve.fake_worker import FakeExecutor, expected_tokens
from hpcserve.ipc.messages import EngineCoreRequest, ModelRunnerOutput, TokenLogprobs
from hpcserve.kvcache.no_reuse import NoReuse
from hpcserve.kvcache.radix import RadixCache
from hpcserve.sampling_params import SamplingParams
from hpcserve.scheduler.scheduler import Scheduler

VOCAB = 50
EOS = 7


@dataclass
class Bench:
    """A scheduler, a checking worker, and `depth` steps in flight."""

    scheduler: Scheduler
    executor: FakeExecutor
    depth: int

    def __post_init__(self) -> None:
        self.in_flight: deque[StepHandle] = deque()
        self.outputs: dict[int, list[int]] = {}
        self.finished: dict[int, tuple[str, int]] = {}

    def add(
        self,
        request_id: int,
        prompt: list[int],
        max_tokens: int | None = None,
        *,
        priority: int = 0,
        **more,
    ) -> None:
        params = SamplingParams(max_tokens=max_tokens, **more)
        tokens = np.array(prompt, np.int32)
        message = EngineCoreRequest(request_id, tokens, params, priority, float(request_id))
        self.scheduler.add(message)
        self.outputs[request_id] = []

    def step(self) -> bool:
        """Issue a step and read the oldest result; False where nothing is left to do."""
        issued = None
        if len(self.in_flight) < self.depth:
            issued = self.scheduler.schedule()
            if issued is not None:
                self.in_flight.append(self.executor.submit(issued))
        if self.in_flight and (issued is None or len(self.in_flight) == self.depth):
            for update in self.scheduler.update(self.in_flight.popleft().result()):
                self.outputs[update.request.request_id].append(update.token_id)
                if update.finished:
                    done = (update.finished.finish_reason, update.finished.num_cached_tokens)
                    self.finished[update.request.request_id] = done
        return bool(self.in_flight) or self.scheduler.has_requests

    def run(self, most: int = 20_000) -> None:
        for _ in range(most):
            if not self.step():
                break
        else:
            raise AssertionError("it never came to an end")
        self.scheduler.check_idle()


def make_bench(
    *,
    num_pages: int = 64,
    page_size: int = 4,
    max_running: int = 8,
    chunk: int = 16,
    policy: str = "fcfs",
    depth: int = 2,
    radix: bool = True,
    context: int = 120,
    max_queued: int | None = None,
) -> Bench:
    config = SchedulerConfig(
        max_running_requests=max_running,
        chunked_prefill_size=chunk,
        schedule_policy=policy,
        max_queued_requests=max_queued,
    )
    cache = RadixCache(page_size) if radix else NoReuse(page_size)
    scheduler = Scheduler(config, cache, num_pages, context_length=context, eos_token_ids=(EOS,))
    executor = FakeExecutor(
        num_pages=num_pages,
        page_size=page_size,
        max_slots=max_running,
        context_length=context,
        vocab_size=VOCAB,
    )
    return Bench(scheduler, executor, depth)


def expected(prompt: list[int], max_tokens: int) -> list[int]:
    return expected_tokens(prompt, max_tokens, vocab_size=VOCAB, stop_ids=frozenset({EOS}))


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("radix", [True, False])
@pytest.mark.parametrize("page_size", [1, 16])
def test_text_does_not_depend_on_scheduling(depth: int, radix: bool, page_size: int) -> None:
    rng = random.Random(depth)
    bench = make_bench(depth=depth, radix=radix, page_size=page_size, num_pages=480 // page_size)
    shared = [rng.randrange(VOCAB) for _ in range(40)]
    prompts = [[*shared[: rng.randrange(1, 40)], rng.randrange(VOCAB)] for _ in range(30)]
    for i, prompt in enumerate(prompts):
        bench.add(i, prompt, 30)
    bench.run()
    for i, prompt in enumerate(prompts):
        assert bench.outputs[i] == expected(prompt, 30)


def test_a_pool_that_is_too_small_retracts_and_loses_nothing() -> None:
    bench = make_bench(num_pages=14, page_size=4, context=56, chunk=64)
    prompts = [[i, i + 1, i + 2] for i in range(12)]
    for i, prompt in enumerate(prompts):
        bench.add(i, prompt, 45, ignore_eos=True)
    bench.run()
    assert bench.scheduler.stats().num_retracted_total > 0
    for i, prompt in enumerate(prompts):
        assert bench.outputs[i] == expected_tokens(prompt, 45, vocab_size=VOCAB)
        assert bench.finished[i] == ("length", 0)  # its own tokens, found again, are no reuse
    assert bench.scheduler.stats().cached_tokens_total == 0


def test_who_was_retracted_goes_on_before_those_who_came_later() -> None:
    bench = make_bench(num_pages=8, page_size=4, max_running=2, context=32)
    for i in range(4):
        bench.add(i, [i, i + 1, i + 2], 21, ignore_eos=True)
    bench.run()
    assert bench.scheduler.stats().num_retracted_total > 0
    assert list(bench.finished) == [0, 1, 2, 3]


@pytest.mark.parametrize("second", [20, 1])
def test_prompts_under_way_keep_the_pages_that_they_still_need(second: int) -> None:
    """A chunk of 9 leaves room for a short prompt beside 8 tokens of a long one."""
    bench = make_bench(num_pages=7, page_size=4, context=28, chunk=9)
    bench.add(0, list(range(27)), 1)
    bench.add(1, list(range(30, 30 + second)), 1)
    bench.run()
    assert bench.scheduler.stats().num_retracted_total == 0
    assert list(bench.finished) == [0, 1]


def test_who_gives_way_has_no_row_in_the_step() -> None:
    """The other decodes already when a prompt's last chunk finds no page: it is too late to
    take that one's, though it came later."""
    bench = make_bench(num_pages=11, page_size=4, max_running=2, context=44, chunk=9)
    requests = [(list(range(40)), 4), ([7], 20)]
    for i, (prompt, length) in enumerate(requests):
        bench.add(i, prompt, length, ignore_eos=True)
    bench.run()
    assert bench.scheduler.stats().num_retracted_total > 0
    for i, (prompt, length) in enumerate(requests):
        assert bench.outputs[i] == expected_tokens(prompt, length, vocab_size=VOCAB)


def test_what_is_computed_again_after_a_retraction_is_shared_rightly() -> None:
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
    assert bench.outputs[2] == expected_tokens(again, 8, vocab_size=VOCAB)


def test_a_slot_may_be_taken_again_in_the_step_that_released_it() -> None:
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
        assert bench.outputs[i] == expected_tokens(prompt, lengths[i], vocab_size=VOCAB)


def test_a_shared_prefix_is_computed_once_even_within_one_step() -> None:
    bench = make_bench(num_pages=200, chunk=512, max_running=8)
    prefix = list(range(40))
    for i in range(8):
        bench.add(i, [*prefix, i], 1)
    bench.run()
    assert bench.executor.num_computed_tokens == 41 + 7
    assert [bench.finished[i][1] for i in range(8)] == [0] + [40] * 7


@pytest.mark.parametrize("page_size", [1, 4])
def test_only_a_page_of_one_token_is_shared_among_decodes_of_its_step(page_size: int) -> None:
    """Attention that writes its own KV may not meet such steps; FakeExecutor looks at all others."""
    bench = make_bench(page_size=page_size)
    prefix = list(range(8))
    bench.add(0, [*prefix, 20], 1)
    bench.run()
    bench.add(1, [*prefix, 30], 1)
    bench.add(2, [*prefix, 30, 31], 1)
    step = bench.scheduler.schedule()
    assert step is not None and step.num_scheduled.tolist() == [1, 1 if page_size == 1 else 2]
    assert step.num_decodes == (2 if page_size == 1 else 1)
    bench.scheduler.update(bench.executor.submit(step).result())
    assert bench.scheduler.requests == []


def test_a_prefix_under_way_in_chunks_is_not_computed_twice() -> None:
    bench = make_bench(num_pages=200, chunk=16, max_running=8, context=400)
    prefix = [i % VOCAB for i in range(200)]
    for i in range(4):
        bench.add(i, [*prefix, i], 1)
    bench.run()
    assert bench.executor.num_computed_tokens < 201 + 3 * 20


def test_chunks_end_at_the_end_of_a_page() -> None:
    bench = make_bench(chunk=18, page_size=4, depth=1)
    bench.add(0, list(range(40)), 1)
    counts = []
    while (step := bench.scheduler.schedule()) is not None:
        counts += step.num_scheduled.tolist()
        bench.scheduler.update(bench.executor.submit(step).result())
    assert counts == [16, 16, 8]


def test_cached_tokens_are_whole_pages_and_leave_one_to_compute() -> None:
    bench = make_bench()
    prompt = list(range(16))
    for i in range(2):
        bench.add(i, prompt, 2, ignore_eos=True)
        bench.run()
    assert bench.finished[0][1] == 0
    assert bench.finished[1][1] == 12


def test_outputs_are_found_again_by_the_next_turn() -> None:
    bench = make_bench()
    bench.add(0, list(range(10)), 11, ignore_eos=True)
    bench.run()
    bench.add(1, list(range(10)) + bench.outputs[0], 1)
    bench.run()
    assert bench.finished[1][1] == 20


def test_longest_prefix_match_goes_first() -> None:
    bench = make_bench(max_running=1, policy="lpm")
    bench.add(0, list(range(20)), 1)
    bench.run()
    bench.add(1, [40, 41, 42], 1)
    bench.add(2, list(range(20)), 1)
    bench.run()
    assert list(bench.finished) == [0, 2, 1]


def test_a_stranger_is_not_passed_over_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcserve.scheduler.policy.MAX_PASSED_OVER", 3)
    bench = make_bench(max_running=1, policy="lpm")
    bench.add(0, list(range(20)), 1)
    bench.run()
    bench.add(1, [40, 41, 42], 1)
    for i in range(2, 10):
        bench.add(i, list(range(20)), 1)
    bench.run()
    assert list(bench.finished) == [0, 2, 3, 4, 1, 5, 6, 7, 8, 9]


def test_priority_goes_first() -> None:
    bench = make_bench(max_running=1, policy="priority")
    for i, priority in enumerate([0, 0, 5]):
        bench.add(i, [i], 1, priority=priority)
    bench.run()
    assert list(bench.finished) == [2, 0, 1]


def test_priority_is_retracted_last() -> None:
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


def test_a_stop_id_counts_from_the_last_of_min_tokens_and_is_named() -> None:
    prompt = [1, 2, 3]
    free = expected_tokens(prompt, 12, vocab_size=VOCAB)
    bench = make_bench(depth=1)
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


def test_stop_ids_wait_for_min_tokens() -> None:
    prompt = [1, 2, 3]
    free = expected_tokens(prompt, 12, vocab_size=VOCAB)
    bench = make_bench()
    bench.add(0, prompt, 12, stop_token_ids=(free[2], free[5]), min_tokens=4, ignore_eos=True)
    bench.run()
    assert bench.outputs[0] == free[:6]
    assert bench.finished[0][0] == "stop"


def test_a_prompt_that_leaves_no_room_is_refused_with_both_numbers() -> None:
    bench = make_bench(context=120)
    with pytest.raises(ContextLengthError, match=r"120 tokens.*120"):
        bench.add(0, [1] * 120)
    bench.add(1, [1] * 119)
    bench.run()
    assert len(bench.outputs[1]) == 1


def test_the_queue_has_a_limit() -> None:
    bench = make_bench(max_queued=2)
    bench.add(0, [1], 1)
    bench.add(1, [1], 1)
    with pytest.raises(QueueFullError):
        bench.add(2, [1], 1)


def test_prompt_logprobs_compute_every_position() -> None:
    bench = make_bench()
    bench.add(0, list(range(16)), 1)
    bench.run()
    bench.add(1, list(range(16)), 1, prompt_logprobs=0)
    bench.run()
    assert bench.finished[1][1] == 0


def test_prompt_logprobs_make_no_step_of_decodes_eager() -> None:
    """Once the prompt is through, such a request decodes like any other: its step is captured."""
    bench = make_bench()
    bench.add(0, list(range(5)), 4, prompt_logprobs=0)
    prompt, *decodes = [bench.scheduler.schedule() for _ in range(4)]
    assert (len(prompt.slots), prompt.num_decodes) == (1, 0)
    assert [step.num_decodes for step in decodes] == [1, 1, 1]


def test_prompt_logprobs_leave_once_though_a_retracted_prompt_is_computed_again() -> None:
    bench = make_bench()
    bench.add(0, list(range(5)), 9, prompt_logprobs=0)
    scheduler, [request] = bench.scheduler, bench.scheduler.requests
    sent = []
    for token in (11, 12):
        step = scheduler.schedule()
        count = int(step.num_scheduled[0]) - 1
        entries = [TokenLogprobs(-float(position), [], []) for position in range(count)]
        output = ModelRunnerOutput(step.step_id, np.array([token], np.int32), None, {0: entries})
        [message] = by_frontend(scheduler.update(output), output).values()
        sent.append(message.prompt_logprobs)
        scheduler._retract(request)
    assert [len(entries) for _, entries in sent[0]] == [4]
    assert sent[1] is None


def test_flush_cache_frees_every_page() -> None:
    bench = make_bench()
    bench.add(0, list(range(30)), 5)
    bench.run()
    assert bench.scheduler.flush_cache() > 0
    assert bench.scheduler.stats().num_free_pages == 64


def test_frontends_end_their_own_requests_alone() -> None:
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


def test_gauges_say_who_waits_and_who_runs() -> None:
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


def test_gauges_tell_cached_pages_in_use_from_those_that_can_be_had() -> None:
    bench = make_bench()
    bench.add(0, list(range(20)), 9, ignore_eos=True)
    while not bench.outputs[0]:
        bench.step()
    stats = bench.scheduler.stats()
    assert stats.num_cached_pages > 0 and stats.num_evictable_pages == 0
    bench.run()
    stats = bench.scheduler.stats()
    assert stats.num_evictable_pages == stats.num_cached_pages > 0


def test_how_long_a_request_waited_for_its_first_admission(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_an_idle_scheduler_notices_what_was_lost() -> None:
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


def test_unseeded_requests_draw_seeds_that_repeat_with_the_engine() -> None:
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
    seed: int, depth: int, page_size: int, pool_tokens: int, chunk: int, policy: str, radix: bool
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
    stems = [[rng.randrange(VOCAB) for _ in range(30)] for _ in range(3)]
    for _ in range(40):
        action = rng.random()
        if action < 0.5:
            request_id = len(prompts)
            stem = rng.choice(stems)[: rng.randrange(0, 30)]
            if prompts and rng.random() < 0.5:  # goes on where another is, or was
                other = rng.randrange(len(prompts))
                stem = (prompts[other][0] + bench.outputs[other])[:48]
            prompt = stem + [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 8))]
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
        want = expected(prompt, max_tokens)
        got = bench.outputs[request_id]
        if request_id in aborted:
            assert got == want[: len(got)]
        else:
            assert got == want
            assert bench.finished[request_id][0] == ("stop" if want[-1] == EOS else "length")
