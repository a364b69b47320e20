"""tiny-chat on a GPU: its greedy text is the CPU's, however the engine runs it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from hpcserve import LLM, SamplingParams
from hpcserve.config.engine import EngineConfig
from hpcserve.demo import tiny_chat_path
from hpcserve.demo.conversation import Conversation
from hpcserve.demo.data import EVALUATED, held_out
from hpcserve.engine.worker import Worker
from hpcserve.testing import StepDriver
from hpcserve.tokenizer.tokenizer import Tokenizer

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(400)]

NUM_PROMPTS = 100
MAX_TOKENS = 48
GREEDY = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
FP32: dict[str, Any] = {
    "dtype": "float32",
    "attention_backend": "triton",
    "max_running_requests": 64,
    "max_total_tokens": 65536,
}


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Held-out questions of every skill, as token ids."""
    tokenizer = Tokenizer.load(tiny_chat_path())
    each = -(-NUM_PROMPTS // len(EVALUATED))
    asked = [one for skill in EVALUATED for one in held_out(skill, each, seed=7)]
    return [_encode(tokenizer, one) for one in asked[:NUM_PROMPTS]]


def _encode(tokenizer: Tokenizer, one: Conversation) -> list[int]:
    if one.raw:
        return tokenizer.encode(one.messages[0].content)
    messages = [{"role": m.role, "content": m.content} for m in one.messages[:-1]]
    extra = {} if one.thinking is None else {"enable_thinking": one.thinking}
    return tokenizer.encode_chat(messages, tools=list(one.tools) or None, **extra)


def answers_of(llm: LLM, prompts: list[list[int]]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in llm.generate(prompts, GREEDY)]


@pytest.fixture(scope="module")
def expected(prompts: list[list[int]]) -> list[list[int]]:
    """On the CPU, by the reference kernels."""
    with LLM(device="cpu", dtype="float32") as llm:
        return answers_of(llm, prompts)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    with LLM(device="cuda", **FP32) as engine:
        yield engine


def test_cold_warm_and_alone(llm: LLM, prompts: list[list[int]], expected: list[list[int]]) -> None:
    assert answers_of(llm, prompts) == expected
    before = llm.stats().cached_tokens_total
    assert answers_of(llm, prompts) == expected
    assert llm.stats().cached_tokens_total > before
    llm.flush_cache()
    for prompt, answer in list(zip(prompts, expected, strict=True))[::10]:
        assert answers_of(llm, [prompt]) == [answer]


def test_chunked(prompts: list[list[int]], expected: list[list[int]]) -> None:
    with LLM(device="cuda", chunked_prefill_size=16, page_size=1, **FP32) as engine:
        assert answers_of(engine, prompts) == expected


def test_retracted(prompts: list[list[int]], expected: list[list[int]]) -> None:
    """A pool that holds a few of the answers at a time, which all go on past their end."""
    rows = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))[:40]
    params = SamplingParams(temperature=0.0, max_tokens=150, ignore_eos=True)
    options = {**FP32, "max_total_tokens": 640, "page_size": 16, "context_length": 300}
    with LLM(device="cuda", **options) as engine:
        outputs = engine.generate([prompts[i] for i in rows], params)
        assert engine.stats().num_retracted_total > 0
    for i, output in zip(rows, outputs, strict=True):
        assert output.outputs[0].token_ids[: len(expected[i])] == expected[i]


def test_sampled_rows_beside_greedy_ones(
    llm: LLM, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    """A step of both kinds leaves the graph's own tokens aside."""
    hot = SamplingParams(temperature=3.0, max_tokens=MAX_TOKENS, seed=3)
    params = [GREEDY if i % 2 else hot for i in range(20)]
    first = [one.outputs[0].token_ids for one in llm.generate(prompts[:20], params)]
    assert first[1::2] == expected[1:20:2]
    again = [one.outputs[0].token_ids for one in llm.generate(prompts[:20:2], [hot] * 10)]
    assert first[::2] == again
    assert first[::2] != expected[:20:2]


def _logits(prompts: list[list[int]], **options: Any) -> list[torch.Tensor]:
    config = EngineConfig.from_options(
        {
            "model": str(tiny_chat_path()),
            "max_running_requests": 8,
            "max_total_tokens": 65536,
            **options,
        }
    )
    driver = StepDriver(Worker(config).runner)
    found = []
    for slot, prompt in enumerate(prompts):
        driver.admit(slot, prompt)
        found.append(driver.logits([(slot, 0, len(prompt))])[0].float().cpu())
        driver.release(slot)
    return found


@pytest.mark.parametrize("backend", ["triton", "auto"])
def test_logits_in_bf16_are_close(prompts: list[list[int]], backend: str) -> None:
    some = prompts[:8]
    want = _logits(some, device="cpu", dtype="float32")
    got = _logits(some, device="cuda", dtype="bfloat16", attention_backend=backend)
    for one, other in zip(got, want, strict=True):
        assert float((one - other).norm() / other.norm()) < 0.03
        assert np.mean((one.argmax(-1) == other.argmax(-1)).numpy()) > 0.95
