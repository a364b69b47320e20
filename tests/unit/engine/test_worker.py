from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hpcserve.attention.torch_sdpa import TorchSDPABackend
from hpcserve.config.engine import EngineConfig
from hpcserve.engine import decode_graphs, worker
from hpcserve.engine.attention_choice import choose_attention
from hpcserve.engine.executor_inproc import InprocExecutor
from hpcserve.engine.pool_size import pages_on_gpu
from hpcserve.engine.trial_steps import StepLimits, largest_step, warm_up_steps
from hpcserve.errors import (
    ConfigError,
    EngineDeadError,
    HpcserveError,
    ModelNotFoundError,
    UnsupportedModelError,
    WeightsError,
)
from hpcserve.testing import StepDriver, make_random_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_random_checkpoint(tmp_path_factory.mktemp("llama"), "llama")


def _executor(folder, **options) -> InprocExecutor:
    base = {"model": str(folder), "device": "cpu", "cpu_threads": 1, "max_running_requests": 4}
    return InprocExecutor(EngineConfig.from_options({**base, **options}))


def test_info(folder):
    info = _executor(folder, page_size=64).info
    assert (info.vocab_size, info.context_length, info.eos_token_ids) == (131, 256, [2])
    assert info.num_pages * 64 == 65_536
    assert info.device == "cpu"
    assert set(info.timings_s) == {"device", "weights", "profile", "kv_cache"}
    assert _executor(folder, max_total_tokens=100, page_size=16).info.num_pages == 6
    assert _executor(folder, context_length=77).info.context_length == 77


def test_cpu_runs_in_float32_unless_told(folder):
    assert _executor(folder)._worker.setup.dtype == torch.float32
    executor = _executor(folder, dtype="bfloat16")
    runner = executor._worker.runner
    assert runner.pool.kv.dtype == torch.bfloat16
    assert {param.dtype for param in runner.model.parameters()} == {torch.bfloat16}
    texts = StepDriver(runner).generate([[5, 6, 7]], 3)
    assert all(0 <= token < 131 for token in texts[0])


def test_dummy_weights_read_no_file(folder, tmp_path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(WeightsError):
        _executor(tmp_path)
    executor = _executor(tmp_path, load_format="dummy")
    weight = next(executor._worker.runner.model.parameters())
    assert 0 < weight.abs().max() <= 1e-3


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"model": "/nonexistent/model"}, ModelNotFoundError, "/nonexistent/model"),
        ({"context_length": 257}, ConfigError, "256"),
        ({"attention_backend": "fastest"}, ConfigError, "torch_sdpa"),
        ({"tp_size": 2}, ConfigError, "tp_size 2"),
        ({"cuda_graph_max_bs": 0}, ConfigError, "disable-cuda-graph"),
        ({"cuda_graph_max_bs": -4}, ConfigError, "cuda_graph_max_bs is -4"),
        ({"cpu_threads": 0}, ConfigError, "cpu_threads is 0"),
    ],
)
def test_errors_are_one_line(folder, options, error, words):
    with pytest.raises(error, match=words) as caught:
        _executor(folder, **options)
    assert isinstance(caught.value, HpcserveError) and "\n" not in str(caught.value)


SAID = (
    "CUDA out of memory. Tried to allocate 9.00 GiB. GPU 0 has a total capacity of 139.80 GiB of "
    "which 3.1 GiB is free.\nSee the documentation"
)


@pytest.mark.parametrize(
    ("what", "words"), [("fill_dummy_weights", "for weights .*--tp"), ("MHAPool", "for kv cache")]
)
@pytest.mark.parametrize("during_capture", [False, True])
def test_memory_that_does_not_suffice(folder, monkeypatch, what, words, during_capture):
    def allocate(*args, **kwargs):
        try:
            raise torch.OutOfMemoryError(SAID)
        finally:
            if during_capture:
                raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(f"hpcserve.engine.worker.{what}", allocate)
    with pytest.raises(ConfigError, match=words) as caught:
        _executor(folder, load_format="dummy")
    assert "Tried to allocate 9.00 GiB" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_faults_of_torch_are_left_alone(folder, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("expected scalar type Float")

    monkeypatch.setattr("hpcserve.engine.worker.fill_dummy_weights", fail)
    with pytest.raises(RuntimeError, match="scalar type"):
        _executor(folder, load_format="dummy")


@pytest.mark.parametrize(("enabled", "sizes"), [(True, [4]), (False, [])])
def test_references_of_kernels_are_not_captured(folder, monkeypatch, enabled, sizes):
    """They wait for the device, which a capture does not allow: HPCSERVE_DISABLE_KERNELS is eager."""
    worker = _executor(folder)._worker
    captured = []
    runner = SimpleNamespace(capture_graphs=lambda backend, max_rows: captured.append(max_rows))
    monkeypatch.setattr(worker, "runner", runner)
    monkeypatch.setattr("hpcserve.engine.worker.kernels_enabled", lambda: enabled)
    backend = SimpleNamespace(caps=SimpleNamespace(cuda_graph=True))
    worker._capture_graphs(None, backend)
    assert captured == sizes


def test_gpu_asked_for_but_absent(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no GPU"):
        _executor(folder, device="cuda")


def test_unknown_model_type_lists_the_known(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))
    with pytest.raises(
        UnsupportedModelError, match=r"'mamba'.*llama, mistral, mixtral, qwen2, .*qwen3"
    ):
        _executor(tmp_path)


def test_quantized_checkpoints_are_refused_before_they_are_read(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match=r"quantized \(fp8\)"):
        _executor(tmp_path)
    assert _executor(tmp_path, load_format="dummy").info.vocab_size == 131


def test_backend_is_checked_against_its_caps():
    with pytest.raises(ConfigError, match="head size 1024"):
        choose_attention(
            "torch_sdpa",
            device=torch.device("cpu"),
            page_size=16,
            head_dim=1024,
            dtype=torch.float32,
        )


def test_shutdown(folder):
    executor = _executor(folder)
    executor.shutdown()
    executor.shutdown()
    with pytest.raises(EngineDeadError):
        executor.submit(None)


def _limits(num_tokens: int, max_slots: int = 4, page_size: int = 16) -> StepLimits:
    return StepLimits(
        max_slots=max_slots,
        num_tokens=num_tokens,
        context_length=200,
        page_size=page_size,
        vocab_size=131,
    )


@pytest.mark.parametrize("num_tokens", [3, 64, 1000])
def test_largest_step_runs(folder, num_tokens):
    """The step that memory is measured with fills budget and rows, as far as contexts allow."""
    step, num_pages = largest_step(_limits(num_tokens))
    assert step.num_scheduled.sum() == min(num_tokens, 800)
    executor = _executor(folder, page_size=16, max_total_tokens=16 * num_pages)
    output = executor.submit(step).result()
    assert len(output.sampled_token_ids) == min(4, num_tokens)
    assert (output.sampled_token_ids >= 0).all()


@pytest.mark.parametrize(
    ("num_tokens", "max_slots", "page_size"), [(3, 4, 16), (1000, 4, 1), (64, 1, 64), (1, 4, 1)]
)
def test_warm_up_steps_run(folder, num_tokens, max_slots, page_size):
    """On the pages of the largest step; among them one of each kind of parameters."""
    limits = _limits(num_tokens, max_slots, page_size)
    _, num_pages = largest_step(limits)
    options = {"page_size": page_size, "max_total_tokens": page_size * num_pages}
    executor = _executor(folder, max_running_requests=max_slots, **options)
    steps = list(warm_up_steps(limits))
    for step in steps:
        assert step.num_scheduled.sum() <= num_tokens
        assert max(max(request.page_ids) for request in step.new_requests) < num_pages
        output = executor.submit(step).result()
        assert (output.sampled_token_ids >= 0).all()
        rows = [0, 1] if step.new_requests[0].params.logprobs is not None else []
        assert sorted(output.logprobs or {}) == rows
    decodes = [step for step in steps if step.num_decodes]
    assert len(decodes) == (5 if num_tokens > 2 and max_slots > 1 else 0)
    assert steps[0].num_scheduled.tolist() == [1]


def test_pool_leaves_what_steps_and_slots_take(folder, monkeypatch):
    gib = 1 << 30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (70 * gib, 80 * gib))
    cache = EngineConfig.from_options({"mem_fraction_static": 0.75}).cache
    device = torch.device("cuda", 0)
    options = {"device": device, "page_bytes": gib}
    assert pages_on_gpu(cache, step_bytes=0, **options) == 50
    assert pages_on_gpu(cache, step_bytes=3 * gib, **options) == 47
    with pytest.raises(ConfigError, match=r"steps need 50\.0 more"):
        pages_on_gpu(cache, step_bytes=50 * gib, **options)
    batch = _executor(folder, context_length=100, page_size=16)._worker.runner.batch
    assert batch.num_bytes == 4 * (4 * 101 + 4 * 7)


def test_profile_counts_the_peak_and_the_slots(folder, monkeypatch):
    """What a GPU's allocator would say is put in its place."""
    for name in ("synchronize", "reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 1000)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 1700)
    worker = _executor(folder, chunked_prefill_size=64, page_size=16)._worker
    found = worker._profile(worker.runner.model, worker.runner.backend)
    assert found == 700 + worker.runner.batch.num_bytes


def test_start_as_on_a_gpu(tmp_path, monkeypatch):
    """Profile, warm-up and captures while the weights are read: nothing of it stays behind."""
    checkpoint = make_random_checkpoint(tmp_path, "qwen3_moe")
    prompts = [[5, 6, 7], [9, 3, 4, 1, 8], [11]]
    expected = StepDriver(_executor(checkpoint)._worker.runner).generate(prompts, 6)
    for name in ("synchronize", "reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    for name in ("memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda _: 0)
    monkeypatch.setenv("HPCSERVE_EXPERT_HITS_FILE", str(tmp_path / "hits.json"))
    num_pages, captured = worker.Worker._num_pages, []

    def profile_too(self, model, backend):
        self._profile(model, backend)
        return num_pages(self, model, backend)

    class Recorder:
        def __init__(self, device):
            pass

        def capture(self, run):
            captured.append(run())
            return run(), run

    monkeypatch.setattr(worker.Worker, "_num_pages", profile_too)
    monkeypatch.setattr(worker, "captures_on", lambda device: True)
    monkeypatch.setattr(decode_graphs, "make_recorder", Recorder)
    caps = dataclasses.replace(TorchSDPABackend.caps, cuda_graph=True)
    monkeypatch.setattr(TorchSDPABackend, "caps", caps)

    def plan_for_capture(backend, meta, variant=0):
        lengths = np.maximum(meta.seq_lens.numpy().astype(np.int32), 1)
        ones = np.ones_like(lengths)
        backend.plan(dataclasses.replace(meta, host_seq_lens=lengths, host_query_lens=ones))

    monkeypatch.setattr(TorchSDPABackend, "capture_plan", plan_for_capture)
    monkeypatch.setattr(TorchSDPABackend, "replay_plan", lambda *_: None)
    executor = _executor(checkpoint, chunked_prefill_size=64)
    assert len(captured) == 4  # one for each number of rows
    assert not executor._worker._hits.means()
    assert StepDriver(executor._worker.runner).generate(prompts, 6) == expected
    assert executor._worker._hits.means()
