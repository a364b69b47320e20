"""However the model is split over processes, its text is that of one process (fp32, gloo)."""

from __future__ import annotations

import re

import pytest

from hpcserve import LLM, Grammar, SamplingParams
from hpcserve.errors import GrammarError


def options_of(layout: str) -> dict[str, int]:
    return {name: int(value) for name, value in (word.split("=") for word in layout.split())}


@pytest.mark.parametrize("layout", ["tp=2", "tp=4", "pp=3", "tp=2 pp=2"])
def test_dense(kit, folder_of, expected, layout):
    before = set(kit.children())
    with LLM(str(folder_of("qwen3")), **kit.options, **options_of(layout)) as llm:
        assert kit.texts(llm) == expected("qwen3")
        assert llm.stats().num_running == 0
    assert [one for one in kit.children() if one not in before] == []


def test_grammars(kit, folder_of):
    """Every rank that samples follows them, over stages and micro-batches."""
    grammars = [Grammar.regex("[a-f]{4,9}x?"), Grammar.choice(["yes", "no"]), None]
    params = [
        SamplingParams(temperature=0.9, seed=number, max_tokens=12, grammar=grammars[number % 3])
        for number in range(len(kit.prompts))
    ]
    found = []
    for layout in ("tp=1", "tp=2 pp=2"):
        with LLM(str(folder_of("qwen3")), **kit.options, **options_of(layout)) as llm:
            outputs = [output.outputs[0] for output in llm.generate(kit.prompts, params)]
            found.append([output.token_ids for output in outputs])
            with pytest.raises(GrammarError, match="Unclosed"):
                llm.generate(kit.prompts[0], SamplingParams(grammar=Grammar.regex("[a")))
            assert llm.stats().num_running == 0
    assert found[0] == found[1]
    assert all(re.fullmatch("[a-f]{4,9}x?", output.text) for output in outputs[::3])
    assert all(output.text in ("yes", "no") for output in outputs[1::3])


@pytest.mark.parametrize(
    ("model_type", "layout"),
    [("qwen3_moe", "tp=2 ep=2"), ("qwen2_moe", "tp=2"), ("mixtral", "tp=4 ep=2")],
)
def test_experts(kit, folder_of, expected, model_type, layout):
    with LLM(str(folder_of(model_type)), **kit.options, **options_of(layout)) as llm:
        assert kit.texts(llm) == expected(model_type)


@pytest.mark.parametrize(
    ("model_type", "layout", "dispatch"),
    [
        ("qwen3_moe", "dp=2 ep=2", "allgather"),
        ("qwen2_moe", "tp=2 dp=2 ep=2", "allgather"),
        ("qwen2_moe", "tp=2 dp=2 ep=2", "alltoall"),
    ],
)
def test_replicas_that_share_experts(kit, folder_of, expected, model_type, layout, dispatch):
    options = kit.options | options_of(layout)
    options |= {"enable_dp_attention": True, "moe_dispatch": dispatch}
    with LLM(str(folder_of(model_type)), **options) as llm:
        assert kit.texts(llm) == expected(model_type)
        # One request alone: the other replica has no token and serves the experts.
        params = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
        alone = llm.generate([kit.prompts[3]], params)
        assert alone[0].outputs[0].token_ids == expected(model_type)[3]
        assert llm.stats().num_total_pages == 2 * kit.options["max_total_tokens"] // 16


@pytest.mark.parametrize(
    ("model_type", "layout"),
    [
        ("qwen3", {"pp": 3, "enable_overlap": True}),
        ("qwen3_moe", {"dp": 2, "enable_dp_attention": True, "moe_dispatch": "alltoall"}),
    ],
)
def test_requests_that_give_way(kit, folder_of, model_type, layout):
    """The cache is too small for all: some go back to the queue with steps of theirs under way."""
    params = [
        SamplingParams(
            temperature=0.8 * (number % 2),
            seed=number,
            max_tokens=20 + 3 * (number % 7),
            ignore_eos=True,
            repetition_penalty=1.0 + 0.1 * (number % 3),
        )
        for number in range(14)
    ]
    prompts = [
        [3 + (7 * number + i) % 200 for i in range(5 + 6 * (number % 5))] for number in range(14)
    ]
    found = []
    few = {"max_running_requests": 1}
    many = {"max_total_tokens": 128, "max_running_requests": 8, "page_size": 1, **layout}
    for options in (few, many):
        options = kit.options | {"context_length": 100} | options
        with LLM(str(folder_of(model_type)), **options) as llm:
            outputs = llm.generate(prompts, params)
            found.append([output.outputs[0].token_ids for output in outputs])
            retracted = llm.stats().num_retracted_total
    assert found[0] == found[1] and retracted > 0
