import json

import pytest
import xgrammar

from hpcserve import Grammar, SamplingParams
from hpcserve.errors import InvalidParameterError
from hpcserve.grammar import MAX_CHARS


def test_a_schema_keeps_the_order_of_its_keys():
    schema = {"type": "object", "properties": {"b": {}, "a": {}}}
    found = Grammar.json_schema(schema)
    assert found == Grammar.json_schema(json.dumps(schema, indent=3))
    assert found.text.index('"b"') < found.text.index('"a"')
    assert Grammar.json_schema(True).text == "true"


def test_choices_are_quoted():
    assert Grammar.choice(["a", 'say "b"\n']).text == 'root ::= "a" | "say \\"b\\"\\n"'


def test_a_choice_may_hold_any_character():
    """EBNF knows no surrogate pairs, by which JSON may write what is beyond U+FFFF."""
    texts = ["\U0001f600", "ja é"]
    alphabet = xgrammar.TokenizerInfo([bytes([one]) for one in range(256)])
    compiled = xgrammar.GrammarCompiler(alphabet).compile_grammar(Grammar.choice(texts).text)
    for text in texts:
        matcher = xgrammar.GrammarMatcher(compiled, terminate_without_stop_token=True)
        assert matcher.accept_string(text)
        assert matcher.is_terminated()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Grammar.json_schema("{"), "no valid JSON"),
        (lambda: Grammar.json_schema("[1]"), "it is a list, not an object"),
        (lambda: Grammar.json_schema({"a": {1, 2}}), "no valid JSON"),
        (lambda: Grammar.choice([]), "choice: it needs a list"),
        (lambda: Grammar.choice(["a", ""]), "not empty"),
        (lambda: Grammar("lark", "x").validate(), "no kind 'lark'"),
        (lambda: Grammar.regex(" ").validate(), "regex: it is empty"),
        (lambda: Grammar.regex("a" * (MAX_CHARS + 1)).validate(), "more than"),
        (
            lambda: SamplingParams(grammar=Grammar.regex("a"), min_tokens=1).validate(),
            "min_tokens: a grammar says itself",
        ),
        (lambda: SamplingParams(grammar=Grammar("ebnf", "")).validate(), "ebnf: it is empty"),
    ],
)
def test_refused(make, words):
    with pytest.raises(InvalidParameterError, match=words):
        make()
