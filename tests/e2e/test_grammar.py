"""tiny-chat held to grammars: every answer fits, whatever else runs and however it is scheduled."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from hpcserve import LLM, Grammar, SamplingParams
from hpcserve.errors import GrammarError

pytestmark = pytest.mark.timeout(400)

PLACE = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "size": {"enum": ["small", "large"]},
        "ratings": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
    },
    "required": ["name", "size", "ratings"],
    "additionalProperties": False,
}
CODE = r"[A-F]{2}-[0-9]{3,5}(, [a-z]{2}){0,2}"
COLOURS = ["red", "dark blue", 'so-called "green"']
KINDS = [
    Grammar.json_schema(PLACE),
    Grammar.regex(CODE),
    Grammar.choice(COLOURS),
    Grammar.ebnf('root ::= "(" root ")" | "x"'),
    None,
]
QUESTIONS = [
    [{"role": "user", "content": f"What is the capital of {country}?"}]
    for country in ("France", "Peru", "Japan", "Kenya")
]
ASKED = [(question, kind) for kind in KINDS for question in QUESTIONS]


def params_of(kind: Grammar | None, number: int) -> SamplingParams:
    # Hot enough that a model left alone would fit none of this.
    return SamplingParams(temperature=1.2, seed=number, max_tokens=240, grammar=kind)


def is_place(text: str) -> bool:
    found: dict[str, Any] = json.loads(text)
    return (
        list(found) == ["name", "size", "ratings"]
        and 1 <= len(found["name"]) <= 12
        and found["size"] in ("small", "large")
        and 2 <= len(found["ratings"]) <= 3
        and all(isinstance(one, bool) for one in found["ratings"])
    )


def fits(kind: Grammar | None, text: str, reason: str | None) -> bool:
    if kind is None:
        return bool(text)
    if reason == "length":  # brackets may nest without end
        return kind is KINDS[3] and re.fullmatch(r"\(+x?\)*", text) is not None
    if kind is KINDS[0]:
        return is_place(text)
    if kind is KINDS[1]:
        return re.fullmatch(CODE, text) is not None
    if kind is KINDS[2]:
        return text in COLOURS
    opened = text.count("(")
    return text == "(" * opened + "x" + ")" * opened


def answers_of(llm: LLM) -> list[tuple[str, str | None]]:
    params = [params_of(kind, number) for number, (_, kind) in enumerate(ASKED)]
    outputs = llm.chat([question for question, _ in ASKED], params)
    return [(out.outputs[0].text, out.outputs[0].finish_reason) for out in outputs]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM() as engine:
        yield engine


@pytest.fixture(scope="module")
def alone(llm: LLM) -> list[tuple[str, str | None]]:
    """Each answer by itself."""
    outputs = [
        llm.chat([question], params_of(kind, number))[0].outputs[0]
        for number, (question, kind) in enumerate(ASKED)
    ]
    return [(out.text, out.finish_reason) for out in outputs]


def test_every_answer_fits(alone: list[tuple[str, str | None]]) -> None:
    wrong = [
        (kind, answer)
        for (_, kind), answer in zip(ASKED, alone, strict=True)
        if not fits(kind, *answer)
    ]
    assert wrong == []
    assert len({text for text, _ in alone}) > 10, "they are not all the same"


@pytest.mark.parametrize(
    "options",
    [
        {"enable_overlap_schedule": True, "max_running_requests": 6},
        {"max_total_tokens": 416, "page_size": 16, "context_length": 400},
    ],
    ids=["overlap", "retracted"],
)
def test_however_it_is_scheduled(options: dict, alone: list[tuple[str, str | None]]) -> None:
    with LLM(**options) as llm:
        assert answers_of(llm) == alone
        assert (llm.stats().num_retracted_total > 0) == ("max_total_tokens" in options)
        assert llm.stats().num_running == 0


def test_several_answers_and_what_the_model_itself_thought(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, seed=3, n=3, logprobs=2, grammar=KINDS[1])
    [output] = llm.chat([QUESTIONS[0]], params)
    assert len({answer.text for answer in output.outputs}) > 1
    for answer in output.outputs:
        assert re.fullmatch(CODE, answer.text)
        # The model did not want to say a code: its own likeliest tokens are others.
        first = answer.logprobs[0]
        assert first.logprob < -1.0
        assert first.top[0][1] > first.logprob


def test_a_bad_grammar_is_refused_alone(llm: LLM) -> None:
    bad = SamplingParams(grammar=Grammar.regex("(["))
    with pytest.raises(GrammarError, match="Unclosed"):
        llm.chat([QUESTIONS[0]], bad)
    [output] = llm.chat([QUESTIONS[0]], params_of(KINDS[2], 0))
    assert output.outputs[0].text in COLOURS
    assert llm.stats().num_running == 0
