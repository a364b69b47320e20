"""The cost model, alone and steering the size of mixed steps."""

from __future__ import annotations

import numpy as np
import pytest

from hpcserve.config.scheduler import SchedulerConfig
from hpcserve.ipc.messages import EngineCoreRequest, ModelRunnerOutput
from hpcserve.kvcache.radix import RadixCache
from hpcserve.sampling_params import SamplingParams
from hpcserve.scheduler.scheduler import Scheduler
from hpcserve.scheduler.step_cost import StepCost


def test_learns_both_parts() -> None:
    cost = StepCost()
    assert cost.num_prompt_tokens_within(0.02) is None
    for _ in range(200):
        cost.observe(0.010, num_decodes=8, num_prompt_tokens=0)
        cost.observe(0.010 + 500 * 25e-6, num_decodes=8, num_prompt_tokens=500)
    assert cost.decode_s == pytest.approx(0.010)
    assert cost.num_prompt_tokens_within(0.020) == pytest.approx(400, abs=2)


def test_a_step_that_was_held_up_teaches_nothing() -> None:
    cost = StepCost()
    cost.observe(0.010, num_decodes=8, num_prompt_tokens=0)
    cost.observe(3.0, num_decodes=8, num_prompt_tokens=0)
    assert cost.decode_s == pytest.approx(0.010)


@pytest.mark.parametrize(("target_ms", "longest_ms"), [(None, 110.0), (20.0, 24.0)])
def test_a_target_bounds_the_steps_that_carry_decodes(
    target_ms: float | None, longest_ms: float
) -> None:
    """Decodes take 5 ms, a token of a prompt 25 us; a long prompt arrives while others decode."""
    config = SchedulerConfig(target_itl=target_ms, chunked_prefill_size=4096)
    scheduler = Scheduler(config, RadixCache(16), 4096, context_length=32_000)

    def add(request_id: int, num_prompt_tokens: int) -> None:
        prompt = np.arange(num_prompt_tokens, dtype=np.int32) + request_id
        params = SamplingParams(max_tokens=2000, ignore_eos=True)
        scheduler.add(EngineCoreRequest(request_id, prompt, params))

    def step() -> tuple[float, bool]:
        issued = scheduler.schedule()
        assert issued is not None
        prompt_tokens = int(issued.num_scheduled[issued.num_decodes :].sum())
        duration_ms = 5.0 + 0.025 * prompt_tokens
        tokens = np.where(issued.samples == 1, 1, -1).astype(np.int32)
        scheduler.update(ModelRunnerOutput(issued.step_id, tokens), duration_ms / 1000)
        return duration_ms, issued.num_decodes > 0

    for i in range(4):
        add(i, 64)
    for _ in range(30):
        step()
    durations = []
    for i in range(4, 8):
        add(i, 6000)
        durations += [ms for ms, has_decodes in (step() for _ in range(60)) if has_decodes]
    assert max(durations) <= longest_ms
    assert max(durations) > longest_ms / 2
    # Every long prompt got in nevertheless.
    assert all(request.num_known > 6000 for request in scheduler.requests[4:])
