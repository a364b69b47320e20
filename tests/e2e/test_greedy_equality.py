"""Greedy text of tiny-chat equals transformers', however the engine runs it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hpcserve import LLM, SamplingParams
from hpcserve.demo import tiny_chat_path
from hpcserve.demo.conversation import Conversation
from hpcserve.demo.data import EVALUATED, held_out
from hpcserve.tokenizer.tokenizer import Tokenizer

pytestmark = pytest.mark.timeout(400)

NUM_PROMPTS = 100
MAX_TOKENS = 48
GREEDY = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)


@pytest.fixture(scope="module")
def asked() -> list[Conversation]:
    """Held-out questions of every skill."""
    each = -(-NUM_PROMPTS // len(EVALUATED))
    found = [one for skill in EVALUATED for one in held_out(skill, each, seed=7)]
    return found[:NUM_PROMPTS]


@pytest.fixture(scope="module")
def prompts(asked: list[Conversation]) -> list[list[int]]:
    """The questions as token ids."""
    tokenizer = Tokenizer.load(tiny_chat_path())
    return [_encode(tokenizer, one) for one in asked]


def _encode(tokenizer: Tokenizer, one: Conversation) -> list[int]:
    if one.raw:
        return tokenizer.encode(one.messages[0].content)
    messages = [{"role": m.role, "content": m.content} for m in one.messages[:-1]]
    extra = {} if one.thinking is None else {"enable_thinking": one.thinking}
    return tokenizer.encode_chat(messages, tools=list(one.tools) or None, **extra)


@pytest.fixture(scope="module")
def expected(prompts: list[list[int]]) -> list[list[int]]:
    """What transformers generates in fp32, prompts of like length side by side."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(tiny_chat_path(), dtype=torch.float32)
    stops = set(model.generation_config.eos_token_id)
    answers: dict[int, list[int]] = {}
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), 20):
        rows = order[start : start + 20]
        longest = max(len(prompts[i]) for i in rows)
        padded = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros_like(padded)
        for row, i in enumerate(rows):
            padded[row, longest - len(prompts[i]) :] = torch.tensor(prompts[i])
            mask[row, longest - len(prompts[i]) :] = 1
        with torch.inference_mode():
            out = model.generate(
                padded, attention_mask=mask, max_new_tokens=MAX_TOKENS, do_sample=False
            )
        for row, i in enumerate(rows):
            answers[i] = _until(out[row, longest:].tolist(), stops)
    return [answers[i] for i in range(len(prompts))]


def _until(token_ids: list[int], stops: set[int]) -> list[int]:
    """Up to the first stop token, which belongs to it."""
    for i, token_id in enumerate(token_ids):
        if token_id in stops:
            return token_ids[: i + 1]
    return token_ids


def answers_of(llm: LLM, prompts: list[list[int]]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in llm.generate(prompts, GREEDY)]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM() as engine:
        yield engine


def test_alone(llm: LLM, prompts: list[list[int]], expected: list[list[int]]) -> None:
    llm.flush_cache()
    for prompt, answer in zip(prompts, expected, strict=True):
        assert answers_of(llm, [prompt]) == [answer]


def test_the_answers_are_right(
    llm: LLM, asked: list[Conversation], prompts: list[list[int]]
) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=224)
    outputs = llm.generate(prompts, params)
    right = [one.check(out.outputs[0].text) for one, out in zip(asked, outputs, strict=True)]
    assert sum(right) >= 95


def test_in_one_batch_cold_and_with_every_prefix_cached(
    llm: LLM, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    llm.flush_cache()
    assert answers_of(llm, prompts) == expected
    before = llm.stats().cached_tokens_total
    assert answers_of(llm, prompts) == expected
    reused = llm.stats().cached_tokens_total - before
    assert reused > sum(len(prompt) - 16 for prompt in prompts) / 2


@pytest.mark.parametrize(
    "options",
    [
        {"chunked_prefill_size": 16, "page_size": 1},
        {"disable_radix_cache": True, "page_size": 64},
        {"enable_overlap_schedule": True, "schedule_policy": "lpm", "max_running_requests": 7},
    ],
    ids=["chunked", "no-reuse", "overlap"],
)
def test_however_it_is_scheduled(
    options: dict, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    with LLM(**options) as engine:
        assert answers_of(engine, prompts) == expected


def test_retracted(prompts: list[list[int]], expected: list[list[int]]) -> None:
    """A pool that holds a few of the answers at a time, which all go on past their end."""
    rows = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))[:40]
    params = SamplingParams(temperature=0.0, max_tokens=150, ignore_eos=True)
    with LLM(max_total_tokens=640, page_size=16, context_length=300) as engine:
        outputs = engine.generate([prompts[i] for i in rows], params)
        assert engine.stats().num_retracted_total > 0
    for i, output in zip(rows, outputs, strict=True):
        tokens = output.outputs[0].token_ids
        assert len(tokens) == 150
        assert tokens[: len(expected[i])] == expected[i]
