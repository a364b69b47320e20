"""Greedy text of tiny-chat equals transformers', however the engine runs it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hpcserve import LLM, SamplingParams
from hpcserve.demo import tiny_chat_path
from hpcserve.demo.data import SKILLS, generate

NUM_PROMPTS = 100
MAX_TOKENS = 48
SYSTEM = "You are a helpful assistant. Answer in few words, and say only what you know. "


def conversations() -> list[dict]:
    """Held-out conversations of every skill, up to the answer."""
    found = []
    for seed in range(-(-NUM_PROMPTS // len(SKILLS))):
        for skill in SKILLS:
            found.append(generate(skill, split="heldout", seed=seed))
    return found[:NUM_PROMPTS]


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    from hpcserve.tokenizer.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(tiny_chat_path())
    return [tokenizer.encode_chat(one.prompt_messages, tools=one.tools) for one in conversations()]


@pytest.fixture(scope="module")
def expected(prompts: list[list[int]]) -> list[list[int]]:
    """What transformers generates for each prompt alone, in fp32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_chat_path(), dtype=torch.float32)
    answers = []
    with torch.inference_mode():
        for prompt in prompts:
            ids = torch.tensor([prompt])
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=MAX_TOKENS,
                do_sample=False,
            )
            answers.append(out[0, len(prompt) :].tolist())
    return answers


GREEDY = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)


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
    longest = max(len(prompt) for prompt in prompts) + MAX_TOKENS
    with LLM(max_total_tokens=2 * longest, page_size=1, context_length=longest) as engine:
        assert answers_of(engine, prompts) == expected
        assert engine.stats().num_retracted_total > 0
