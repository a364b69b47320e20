"""A model whose decode graphs rotate, write KV and attend in one kernel, in the interpreter."""

from __future__ import annotations

import pytest
import torch

from hpcserve.attention.triton import TritonAttention
from hpcserve.config.engine import EngineConfig
from hpcserve.engine import decode_graphs
from hpcserve.engine.worker import Worker
from hpcserve.ops import paged_attention
from hpcserve.testing import StepDriver, make_random_checkpoint

pytest.importorskip("triton")

PAGE = 16
# The second one's tokens go over the end of a page; the last one has several parts.
PROMPTS = [[5, 6, 7], [9 + i % 50 for i in range(PAGE - 1)], [3 + i % 70 for i in range(70)]]
NUM_TOKENS = 3


class Recorder:
    """A replay runs the code again, into the memory of the first time."""

    def __init__(self, device):
        pass

    def capture(self, run):
        outputs = run()
        static = [outputs.hidden, outputs.logits.logits, outputs.positions]

        def replay():
            again = run()
            fresh = [again.hidden, again.logits.logits, again.positions]
            for old, new in zip(static, fresh, strict=True):
                old.copy_(new)

        return outputs, replay


def runner_of(folder, page_size):
    options = {"device": "cpu", "cpu_threads": 1, "max_running_requests": 8}
    options |= {"page_size": page_size, "max_total_tokens": 40 * PAGE}
    return Worker(EngineConfig.from_options({"model": str(folder), **options})).runner


@pytest.fixture
def rotated(monkeypatch):
    """Rows of each call that rotated; attention and what it does to KV run as kernels."""
    module = pytest.importorskip("hpcserve.kernels.attention.paged_decode_triton")
    monkeypatch.setattr(paged_attention, "use_kernel", lambda tensor: True)
    monkeypatch.setattr(module, "MIN_SPLIT", 64)
    monkeypatch.setattr(decode_graphs, "make_recorder", Recorder)
    whole, calls = TritonAttention.rotate_and_forward, []

    def remember(backend, q, *rest):
        calls.append(len(q))
        return whole(backend, q, *rest)

    monkeypatch.setattr(TritonAttention, "rotate_and_forward", remember)
    return calls


@pytest.mark.parametrize(
    ("model_type", "page_size", "graph"),
    [("llama", PAGE, 4), ("qwen3", PAGE, 3), ("llama", PAGE, 5), ("qwen3", 1, 4)],
    ids=["padded", "norms", "many rows", "pages of one token"],
)
def test_greedy_text(tmp_path, monkeypatch, rotated, model_type, page_size, graph):
    """The reference's, and nothing but the rows' own tokens is written, by no padding either."""
    folder = make_random_checkpoint(tmp_path, model_type)
    monkeypatch.setattr(decode_graphs, "ladder", lambda most: [most])
    runner = runner_of(folder, page_size)
    expected = StepDriver(runner).generate(PROMPTS, NUM_TOKENS)
    model = runner.model
    runner.backend = TritonAttention(
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        page_size=page_size,
        scale=model.head_dim**-0.5,
        dtype=torch.float32,
    )
    runner.pool.kv.fill_(torch.nan)
    runner.capture_graphs(runner.backend, graph)
    assert runner.pool.kv.isnan().all()
    driver = StepDriver(runner)
    assert driver.generate(PROMPTS, NUM_TOKENS) == expected
    rotates = graph <= 4 and page_size > 1
    assert rotated == ([graph] * model.num_layers * NUM_TOKENS if rotates else [])
    written = torch.zeros(runner.pool.num_pages, page_size, dtype=torch.bool)
    for slot, prompt in enumerate(PROMPTS):
        at = torch.arange(len(prompt) + NUM_TOKENS - 1)
        written[torch.tensor(driver.pages_of(slot))[at // page_size], at % page_size] = True
    for cache in (cache for layer in runner.pool.layers for cache in layer):
        assert torch.equal(~cache.isnan().flatten(2).any(-1), written)
        assert torch.equal(cache.isnan().flatten(2).all(-1), ~written)
