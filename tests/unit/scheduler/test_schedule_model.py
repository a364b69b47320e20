"""benchmarks/schedule_model.py: the scheduler on a clock of counted costs."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hpcserve.bench.request import BenchRequest
from hpcserve.config.scheduler import SchedulerConfig
from hpcserve.kvcache.radix import RadixCache
from hpcserve.scheduler.scheduler import Scheduler

PATH = Path(__file__).parents[3] / "benchmarks" / "schedule_model.py"


@pytest.fixture(scope="module")
def model():
    spec = importlib.util.spec_from_file_location("schedule_model", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def costs(model):
    """10 ms a step whatever it carries, and nothing else."""
    flat = {"1": 10.0, "100000": 10.0}
    free = replace(model.Costs.read(model.COSTS), linear_ms=flat, mixed_ms=0.0)
    return replace(free, kv_bytes_per_token=0.0, attention_flop_per_pair=0.0)


def run(model, costs, requests, concurrency=None, **options):
    scheduler = Scheduler(SchedulerConfig(**options), RadixCache(16), 1000, context_length=4000)
    done = model.Run(requests, scheduler, costs, concurrency)
    done.run()
    scheduler.check_idle()
    return done


def prompts(count, num_in=20, num_out=11):
    return [
        BenchRequest(prompt_token_ids=[n + 1] * num_in, max_tokens=num_out) for n in range(count)
    ]


def test_requests_that_come_together_take_one_step_a_token(model, costs):
    done = run(model, costs, prompts(8))
    assert done.num_steps == 11
    np.testing.assert_allclose(done.last - done.first, 0.1, atol=0.002)
    np.testing.assert_allclose(done.first, 0.010, atol=0.006)


def test_a_stream_sends_when_it_is_answered(model, costs):
    done = run(model, costs, prompts(3), concurrency=1)
    assert done.num_steps == 33
    assert np.all(done.sent[1:] > done.last[:-1])


def test_who_finds_no_room_waits(model, costs):
    done = run(model, costs, prompts(4), max_running_requests=2)
    assert done.first[2:].min() >= done.last[:2].min()


def test_costs_count_what_a_step_carries(model, costs):
    flat = run(model, costs, prompts(8, num_in=2000, num_out=2))
    reading = run(model, replace(costs, kv_bytes_per_token=1e6), prompts(8, 2000, 2))
    # Each prompt is read by one decode: 8 x 2,000 tokens of a megabyte.
    assert reading.last.max() - flat.last.max() == pytest.approx(16e9 / 3.6e12, rel=0.01)
    mixed = run(model, replace(costs, mixed_ms=5.0), prompts(8, 2000, 2))
    # 16,000 tokens of prompts, at most 8,192 in a step and no more than decodes leave of them.
    assert mixed.last.max() - flat.last.max() == pytest.approx(3 * 0.005, rel=0.01)


def test_a_preset_runs_whole(model):
    found = model.simulate("prefix", {"chunked_prefill_size": 4096}, model.Costs.read(model.COSTS))
    assert found["ttft_ms"]["p50"] <= found["ttft_ms"]["p99"]
    assert found["output_tok_s"] == pytest.approx(1024 * 32 / found["duration_s"], rel=0.01)
