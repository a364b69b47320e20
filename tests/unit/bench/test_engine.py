"""The modes that drive the engine itself, over a worker without a model."""

from __future__ import annotations

import json

import pytest

from hpcserve.bench import offline, one_batch
from hpcserve.bench.metrics import figures_of
from hpcserve.bench.request import BenchRequest
from hpcserve.bench.roofline import Hardware
from hpcserve.bench.scripted_core import ScriptedChannel, run_core_alone
from hpcserve.bench.selection import select
from hpcserve.bench.step_maker import StepMaker
from hpcserve.config.engine import EngineConfig
from hpcserve.engine.core import EngineCore
from hpcserve.errors import UsageError
from hpcserve.fake_worker import FakeExecutor

CONFIG = EngineConfig.from_options({"max_running_requests": 8, "chunked_prefill_size": 64})


def fake_executor(*, num_pages=256, context_length=512, **more):
    return FakeExecutor(
        num_pages=num_pages, page_size=16, max_slots=8, context_length=context_length, **more
    )


def test_the_core_alone_runs_every_run_of_a_script():
    def run(base):
        return [
            BenchRequest(prompt_token_ids=[base + n, *range(40)], max_tokens=5) for n in range(12)
        ]

    runs = [run(100), run(200)]
    channel = ScriptedChannel(iter(runs))
    results = run_core_alone(EngineCore(CONFIG, fake_executor(step_time_s=0.002), channel), channel)
    assert [len(records) for records in results] == [12, 12]
    for requests, records in zip(runs, results, strict=True):
        figures = figures_of(requests, records)
        assert figures["num_ok"] == 12
        assert figures["output_tokens"] == 60
        assert figures["prompt_tokens"] == 12 * 41
        assert figures["itl_ms"]["p50"] >= 2.0
        assert figures["cache_hit_rate"] == 0.0


def test_requests_that_cannot_run_are_counted():
    requests = [BenchRequest(prompt_token_ids=[1] * n, max_tokens=4) for n in (10, 600)]
    channel = ScriptedChannel(iter([requests]))
    (records,) = run_core_alone(EngineCore(CONFIG, fake_executor(), channel), channel)
    figures = figures_of(requests, records)
    assert figures["errors"] == {"context_length_exceeded": 1}
    assert figures["num_ok"] == 1


def test_steps_are_what_a_scheduler_would_issue():
    # The fake worker reads back every page it is told to, and raises where one is wrong.
    executor = fake_executor(verify=True)
    maker = StepMaker(executor.info, page_size=16, token_budget=64)
    for batch_size, input_len in ((3, 50), (1, 200), (8, 16)):
        prefill = list(maker.prefill(batch_size, input_len, seed=1))
        assert sum(int(step.num_scheduled.sum()) for step in prefill) == batch_size * input_len
        assert all(step.num_scheduled.sum() <= 64 for step in prefill)
        assert sum(int(step.samples.sum()) for step in prefill) == batch_size
        for step in [*prefill, *maker.decode(batch_size, input_len, 20)]:
            output = executor.submit(step).result()
            assert ((output.sampled_token_ids >= 0) == (step.samples == 1)).all()


def test_step_times_are_measured():
    executor = fake_executor(step_time_s=0.004)
    bench = one_batch.StepBench(executor, CONFIG, num_steps=6, depth=1)
    row = bench.measure(4, 32, repeats=2)
    assert 4.0 <= row["decode_ms"]["median"] < 30.0
    assert row["prefill_ms"]["median"] >= 8.0  # 128 tokens in steps of 64
    assert row["decode_tok_s"] == pytest.approx(4e3 / row["decode_ms"]["median"])


def test_batches_that_do_not_fit_are_skipped():
    bench = one_batch.StepBench(fake_executor(num_pages=8), CONFIG, num_steps=6, depth=1)
    assert "pages of KV cache" in bench.measure(4, 64, repeats=1)["skipped"]
    assert "more than the context of 512" in bench.measure(1, 600, repeats=1)["skipped"]


@pytest.fixture
def folder(tmp_path):
    config = {
        "model_type": "qwen3",
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "intermediate_size": 48,
        "vocab_size": 1024,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.fixture
def fake_engine(monkeypatch):
    monkeypatch.setattr("hpcserve.engine.core.make_executor", lambda config: fake_executor())


def test_one_batch_has_floors(folder, fake_engine):
    config = CONFIG.replace(model=str(folder))
    rows = one_batch.run_one_batch(
        config,
        batch_sizes=[1, 4],
        input_lens=[32],
        num_steps=4,
        depth=2,
        repeats=1,
        hardware=Hardware(bytes_per_s=1e9, flops_per_s=1e9),
        say=lambda _: None,
    )
    assert [row["batch_size"] for row in rows] == [1, 4]
    assert all(row["decode_floor_ms"] > 0 and row["prefill_floor_ms"] > 0 for row in rows)
    assert rows[0]["decode_share_of_floor"] == pytest.approx(
        rows[0]["decode_floor_ms"] / rows[0]["decode_ms"]["median"]
    )


def test_offline_without_a_frontend(folder, fake_engine, tmp_path):
    values = {"num_requests": 5, "input_len": 20, "output_len": 6}
    said = []
    outcome = offline.run_offline(
        CONFIG.replace(model=str(folder)),
        select(workload="random", preset=None, trace=None, values=values),
        seed=0,
        repeats=2,
        warmup=2,
        frontend=False,
        hardware=Hardware(),
        trace_file=tmp_path / "trace.jsonl",
        say=said.append,
    )
    (cell,) = outcome["cells"]
    assert [run["output_tokens"] for run in cell["runs"]] == [30, 30]
    assert cell["summary"]["mfu"]["median"] > 0
    json.dumps(outcome)
    assert len((tmp_path / "trace.jsonl").read_text().splitlines()) == 5


@pytest.mark.parametrize("workload", ["json", "multi-turn"])
def test_offline_refuses_what_only_a_server_can_do(folder, workload):
    with pytest.raises(UsageError, match="need a server"):
        offline.run_offline(
            CONFIG.replace(model=str(folder)),
            select(workload=workload, preset=None, trace=None, values={}),
            seed=0,
            repeats=1,
            warmup=None,
            frontend=True,
            hardware=Hardware(),
            trace_file=None,
            say=lambda _: None,
        )
