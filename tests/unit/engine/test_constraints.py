"""Masks of a byte tokenizer, bit by bit, against Python's own regular expressions."""

import numpy as np
import pytest
import torch

from hpcserve.engine.constraints import Constraints
from hpcserve.engine.executor import StepHandle
from hpcserve.engine.grammar_compiler import GrammarCompiler
from hpcserve.errors import GrammarError
from hpcserve.fake_engine import VOCAB_SIZE, write_byte_tokenizer
from hpcserve.grammar import Grammar
from hpcserve.ipc.messages import ModelRunnerOutput, NewRequest
from hpcserve.sampling_params import SamplingParams

EOS = 256
CPU = torch.device("cpu")


class Sampled(StepHandle):
    """A step whose tokens are these, row by row."""

    def __init__(self, *token_ids):
        self.token_ids = np.array(token_ids, np.int32)

    def done(self):
        return True

    def result(self):
        return ModelRunnerOutput(1, self.token_ids)


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    folder = write_byte_tokenizer(tmp_path_factory.mktemp("model"))
    return GrammarCompiler(folder, VOCAB_SIZE, [EOS], "xgrammar")


@pytest.fixture
def constraints(compiler):
    return Constraints(compiler, VOCAB_SIZE, [EOS], CPU)


def new(slot, grammar, outputs=""):
    tokens = np.array([1, 2, *outputs.encode()], np.int32)
    params = SamplingParams(grammar=grammar)
    return NewRequest(slot, tokens, 2, np.zeros(0, np.int32), params, 0)


def allowed(constraints, slots, row):
    """The tokens that may follow in a row, as text; EOS as a dollar."""
    logits = torch.zeros(len(slots), VOCAB_SIZE)
    constraints.apply(logits, slots)
    ids = (logits[row] == 0).nonzero().flatten().tolist()
    return "".join("$" if token == EOS else chr(token) for token in ids)


def test_the_mask_follows_the_tokens(constraints):
    constraints.add(new(3, Grammar.regex("ab?[xyz]")))
    constraints.add(new(7, None))
    assert allowed(constraints, [7, 3], 1) == "a"
    assert len(allowed(constraints, [7, 3], 0)) == VOCAB_SIZE
    for text, then in (("a", "bxyz"), ("b", "xyz"), ("y", "$")):
        constraints.follow(Sampled(5, ord(text)), [0, 1], [7, 3])
        assert allowed(constraints, [7, 3], 1) == then
    constraints.follow(Sampled(5, EOS), [0, 1], [7, 3])
    assert allowed(constraints, [7, 3], 1) == "$", "with ignore_eos, EOS follows EOS"


def test_two_steps_under_way(constraints):
    constraints.add(new(0, Grammar.regex("abcd")))
    constraints.follow(Sampled(ord("a")), [0], [0])
    constraints.follow(Sampled(9, ord("b")), [1], [0])
    assert allowed(constraints, [0], 0) == "c"


def test_after_a_retraction(constraints):
    constraints.add(new(0, Grammar.regex("abcd"), outputs="abc"))
    assert allowed(constraints, [0], 0) == "d"


def test_a_slot_that_was_given_to_another_request(constraints):
    constraints.add(new(0, Grammar.regex("abcd")))
    constraints.follow(Sampled(ord("a")), [0], [0])
    constraints.release(0)
    assert not constraints and not constraints.holds([0])
    constraints.add(new(0, Grammar.regex("xyz")))
    assert allowed(constraints, [0], 0) == "x", "the token was of the request before"


def test_a_token_outside_of_the_grammar_ends_it(constraints, caplog):
    constraints.add(new(0, Grammar.regex("ab")))
    constraints.follow(Sampled(ord("z")), [0], [0])
    assert allowed(constraints, [0], 0) == "$"
    assert "token 122 does not fit" in caplog.text


def test_many_rows_of_many_kinds(constraints):
    kinds = [
        Grammar.json_object(),
        Grammar.choice(["yes", "no"]),
        Grammar.ebnf('root ::= "q" root | "r"'),
        Grammar.json_schema({"type": "array", "items": {"type": "boolean"}, "minItems": 1}),
    ]
    for slot, grammar in enumerate(kinds * 2):
        constraints.add(new(slot, grammar))
    firsts = [set(allowed(constraints, list(range(8)), row)) for row in range(8)]
    assert firsts[:4] == firsts[4:] == [{"{"}, {"n", "y"}, {"q", "r"}, {"["}]


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        (Grammar.regex("(["), r"^regex: Regex parsing error.*Unclosed"),
        (Grammar.json_schema({"type": "strong"}), "^json_schema: Unsupported type"),
        (Grammar.ebnf('top ::= "a"'), "^ebnf: .*root"),
        (Grammar.structural_tag({"format": {"type": "x"}}), "^structural_tag: "),
    ],
)
def test_what_cannot_be_compiled(compiler, grammar, words):
    with pytest.raises(GrammarError, match=words) as refused:
        compiler.compile(grammar).result()
    assert "\n" not in str(refused.value) and ".cc:" not in str(refused.value)


def test_compiled_once_and_not_for_ever(compiler, monkeypatch):
    first = compiler.compile(Grammar.regex("once"))
    assert compiler.compile(Grammar.regex("once")) is first
    monkeypatch.setattr("hpcserve.engine.grammar_compiler._KEPT", 2)
    for text in ("b", "c"):
        compiler.compile(Grammar.regex(text)).result()
    assert compiler.compile(Grammar.regex("once")) is not first


def test_no_grammars_wanted(tmp_path):
    refused = GrammarCompiler(tmp_path, 10, [1], "none").compile(Grammar.json_object())
    with pytest.raises(GrammarError, match="--grammar-backend none"):
        refused.result()
