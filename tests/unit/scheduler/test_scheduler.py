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
from hpcserve.errors import ContextLengthError, QueueFullError
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
        self, request_id: int, prompt: list[int], max_tokens: int | None = None, **more
    ) -> None:
        params = SamplingParams(max_tokens=max_tokens, **more)
        tokens = np.array(prompt, np.int32)
        message = EngineCoreRequest(request_id, tokens, params, arrival_s=float(request_id))
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
        assert bench.finished[i][0] == "length"


def test_a_shared_prefix_is_computed_once_even_within_one_step() -> None:
    bench = make_bench(num_pages=200, chunk=512, max_running=8)
    prefix = list(range(40))
    for i in range(8):
        bench.add(i, [*prefix, i], 1)
    bench.run()
    assert bench.executor.num_computed_tokens == 41 + 7
    assert [bench.finished[i][1] for i in range(8)] == [0] + [40] * 7


def test_a_prefix_under_way_in_chunks_is_not_computed_twice() -> None:
    bench = make_bench(num_pages=200, chunk=16, max_running=8, context=400)
    prefix = [i % VOCAB for i in range(200)]
    for i in range(4):
        bench.add(i, [*prefix, i], 1)
    bench.run()
    assert bench.executor.num_computed_tokens < 201 + 3 * 20


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


def test_priority_goes_first_and_is_retracted_last() -> None:
    bench = make_bench(max_running=1, policy="priority")
    for i, priority in enumerate([0, 0, 5]):
        message = EngineCoreRequest(
            i, np.array([i], np.int32), SamplingParams(max_tokens=1), priority, float(i)
        )
        bench.outputs[i] = []
        bench.scheduler.add(message)
    bench.run()
    assert list(bench.finished) == [2, 0, 1]


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
            prompt = stem + [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 8))]
            prompts[request_id] = (prompt, rng.randrange(1, 60 - len(prompt) + 1))
            bench.add(request_id, *prompts[request_id])
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
