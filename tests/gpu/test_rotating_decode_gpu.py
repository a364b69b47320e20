"""Decode graphs of few rows, whose attention rotates and writes the KV itself, on a device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hpcserve.config.engine import EngineConfig
from hpcserve.demo import tiny_chat_path
from hpcserve.engine.model_runner import ModelRunner
from hpcserve.engine.worker import Worker
from hpcserve.testing import StepDriver
from hpcserve.tokenizer.tokenizer import Tokenizer

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(400)]

decode = pytest.importorskip("hpcserve.kernels.attention.paged_decode_triton")

PAGE, NUM_TOKENS = 16, 24
QUESTIONS = ("What is 12 + 7?", "Say the word banana three times.", "What is the opposite of hot?")
DEVICE = "cuda"


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """One of them long enough for several parts."""
    tokenizer = Tokenizer.load(tiny_chat_path())
    words = [[{"role": "user", "content": question}] for question in QUESTIONS]
    words[1][0]["content"] = "Please listen. " * 40 + words[1][0]["content"]
    return [tokenizer.encode_chat(messages) for messages in words]


@pytest.fixture
def rotated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each launch, or capture of one, that rotates."""
    whole, rows = decode.paged_decode, []

    def remember(q: torch.Tensor, *args: Any, **more: Any) -> torch.Tensor:
        if more.get("fresh") is not None:
            rows.append(len(q))
        out: torch.Tensor = whole(q, *args, **more)
        return out

    monkeypatch.setattr(decode, "paged_decode", remember)
    return rows


def runner_of(**options: Any) -> ModelRunner:
    more = {"max_running_requests": 8, "max_total_tokens": 65536, "page_size": PAGE}
    return Worker(
        EngineConfig.from_options({"model": str(tiny_chat_path()), **more, **options})
    ).runner


def test_greedy_text(prompts: list[list[int]], rotated: list[int]) -> None:
    """The CPU's; and nothing but the rows' own tokens is ever written, by no padding either."""
    expected = StepDriver(runner_of(device="cpu", dtype="float32")).generate(prompts, NUM_TOKENS)
    runner = runner_of(device=DEVICE, dtype="float32", attention_backend="triton")
    # Each graph of 1 to 4 rows runs once before it is captured.
    assert sorted(rotated) == sorted([1, 2, 3, 4] * 2 * runner.model.num_layers)
    runner.pool.kv.fill_(torch.nan)
    driver = StepDriver(runner)
    assert driver.generate(prompts, NUM_TOKENS) == expected
    written = torch.zeros(runner.pool.num_pages, PAGE, dtype=torch.bool)
    for slot, prompt in enumerate(prompts):
        at = torch.arange(len(prompt) + NUM_TOKENS - 1)
        written[torch.tensor(driver.pages_of(slot))[at // PAGE], at % PAGE] = True
    for cache in (cache for layer in runner.pool.layers for cache in layer):
        unwritten = cache.isnan().flatten(2).cpu()
        assert torch.equal(unwritten.all(-1), ~written)
        assert torch.equal(unwritten.any(-1), ~written)


@pytest.mark.parametrize("backend", ["triton", "auto"])
@pytest.mark.parametrize("rows", [1, 3])
def test_logits_and_cache_in_bf16(
    prompts: list[list[int]], rotated: list[int], backend: str, rows: int
) -> None:
    """A replay leaves what an eager step leaves, and does so in every replay to the bit."""
    runner = runner_of(device=DEVICE, dtype="bfloat16", attention_backend=backend)
    assert sorted(rotated) == sorted([1, 2, 3, 4] * 2 * runner.model.num_layers)
    graphs = runner._graphs
    assert graphs is not None
    runner.pool.kv.zero_()
    driver = StepDriver(runner)
    lengths = [len(prompt) for prompt in prompts[:rows]]
    for slot, prompt in enumerate(prompts[:rows]):
        driver.admit(slot, prompt)
    driver.submit([(slot, 0, length) for slot, length in enumerate(lengths)])
    eager = driver.logits([(slot, length, 1) for slot, length in enumerate(lengths)], rows)
    want = torch.cat(eager).float()
    pages = torch.tensor([driver.pages_of(s)[n // PAGE] for s, n in enumerate(lengths)])
    offsets = torch.tensor(lengths) % PAGE
    before = runner.pool.kv.clone()
    caches = [cache for layer in runner.pool.layers for cache in layer]
    tokens = [cache[pages, offsets].clone() for cache in caches]
    seen = []
    for _ in range(20):
        for cache in caches:
            cache[pages, offsets] = torch.nan
        with torch.inference_mode():
            out = graphs.run(np.arange(rows, dtype=np.int32), np.array(lengths, np.int32))
            assert out.logits is not None
            seen.append(out.logits.logits[:rows].float())
        for cache, token in zip(caches, tokens, strict=True):
            new = cache[pages, offsets]
            assert float((new - token).float().norm() / token.float().norm()) < 0.02
    assert all(torch.equal(one, seen[0]) for one in seen)
    assert float((seen[0] - want).norm() / want.norm()) < 0.03
    for cache, token in zip(caches, tokens, strict=True):
        cache[pages, offsets] = token
    assert torch.equal(runner.pool.kv, before)
