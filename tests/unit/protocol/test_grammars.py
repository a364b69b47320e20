"""Bodies to grammars, in the three dialects."""

import json

import pytest

from hpcserve.errors import InvalidParameterError
from hpcserve.grammar import Grammar
from hpcserve.protocol.body import parse_body, sampling_params
from hpcserve.protocol.generate import GenerateSampling
from hpcserve.protocol.grammars import after_thinking, forced_tool_call, grammar_field
from hpcserve.protocol.openai import ChatBody, CompletionBody

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
MESSAGES = [{"role": "user", "content": "hi"}]
TOOLS = [
    {"type": "function", "function": {"name": "look_up", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "stop"}},
]


def of_completion(**fields):
    body = parse_body(CompletionBody, {"prompt": "x", **fields})
    return sampling_params(body, {}).grammar


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"regex": None, "guided_json": None, "ebnf": ""}, None),
        ({"response_format": {"type": "json_object"}}, Grammar.json_object()),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
            Grammar.json_schema(SCHEMA),
        ),
        ({"json_schema": json.dumps(SCHEMA)}, Grammar.json_schema(SCHEMA)),
        ({"json_schema": {}}, Grammar.json_schema({})),
        ({"regex": "a+"}, Grammar.regex("a+")),
        ({"ebnf": 'root ::= "a"'}, Grammar.ebnf('root ::= "a"')),
        ({"guided_json": SCHEMA}, Grammar.json_schema(SCHEMA)),
        ({"guided_regex": "b"}, Grammar.regex("b")),
        ({"guided_choice": ["y", "n"]}, Grammar.choice(["y", "n"])),
        ({"guided_grammar": 'root ::= "a"'}, Grammar.ebnf('root ::= "a"')),
        ({"structured_outputs": {"json": SCHEMA, "regex": None}}, Grammar.json_schema(SCHEMA)),
        ({"structured_outputs": {"choice": ["y"]}}, Grammar.choice(["y"])),
        ({"structured_outputs": {"json_object": True}}, Grammar.json_object()),
        ({"structured_outputs": {"json_object": False}}, None),
    ],
)
def test_every_dialect(fields, expected):
    assert of_completion(**fields) == expected


@pytest.mark.parametrize("name", ["json_schema", "guided_json", "structural_tag"])
def test_json_nested_without_end_is_refused(name):
    for text in ("[" * 100_000, '{"a":' * 100_000):
        with pytest.raises(InvalidParameterError, match="no valid JSON"):
            of_completion(**{name: text})


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": {"type": "text"}, "regex": "a"}, "regex"),
        ({"guided_choice": ["a"]}, "guided_choice"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"tools": TOOLS, "tool_choice": "required"}, "tool_choice"),
    ],
)
def test_the_field_that_a_grammar_came_from(fields, name):
    body = parse_body(ChatBody, {"messages": MESSAGES, **fields})
    assert grammar_field(body, body.response_format) == name


def test_sglangs_native_fields():
    sampling = parse_body(GenerateSampling, {"json_schema": SCHEMA})
    params = sampling.to_params(logprobs=None, prompt_logprobs=None)
    assert params.grammar == Grammar.json_schema(SCHEMA)
    sampling = parse_body(GenerateSampling, {"regexp": "a"})
    with pytest.raises(InvalidParameterError, match="no 'regexp'"):
        sampling.to_params(logprobs=None, prompt_logprobs=None)


def test_both_notations_of_a_structural_tag():
    old = {
        "type": "structural_tag",
        "structures": [{"begin": "<f>", "schema": SCHEMA, "end": "</f>"}],
        "triggers": ["<f"],
    }
    new = {
        "type": "structural_tag",
        "format": {
            "type": "triggered_tags",
            "triggers": ["<f"],
            "tags": [
                {
                    "begin": "<f>",
                    "content": {"type": "json_schema", "json_schema": SCHEMA},
                    "end": "</f>",
                }
            ],
        },
    }
    expected = Grammar.structural_tag(new)
    for given in (old, new, json.dumps(old)):
        assert of_completion(structural_tag=given) == expected
    assert of_completion(response_format=old) == expected


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"regex": "a", "ebnf": "b"}, "ebnf", "only one of regex, ebnf"),
        ({"regex": "a", "response_format": {"type": "json_object"}}, "response_format", "only one"),
        ({"response_format": {"type": "xml"}}, "response_format", "'xml' is not one of"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema needs"),
        ({"json_schema": "{"}, "json_schema", "no valid JSON"),
        ({"structural_tag": "{"}, "structural_tag", "no valid JSON"),
        ({"guided_choice": [""]}, "choice", "not empty"),
        ({"structured_outputs": {"lark": "x"}}, "structured_outputs", "'lark' is not supported"),
        ({"regex": 5}, "regex", "valid string"),
        ({"structured_outputs": {"regex": 5}}, "regex", "it is a int"),
        ({"structured_outputs": {"grammar": ["a"]}}, "ebnf", "it is a list"),
        ({"structured_outputs": {"choice": 5}}, "choice", "list of texts"),
        ({"structured_outputs": {"choice": "ab"}}, "choice", "list of texts"),
        ({"structural_tag": {"structures": 5}}, "structural_tag", "structures is a list"),
        ({"structural_tag": {"structures": [5]}}, "structural_tag", "structures is a list"),
    ],
)
def test_refused(fields, param, words):
    with pytest.raises(InvalidParameterError, match=words) as refused:
        of_completion(**fields)
    assert refused.value.param == param


def forced(**fields):
    return parse_body(ChatBody, {"messages": MESSAGES, "tools": TOOLS, **fields}).forced_call


def test_a_forced_call():
    assert forced() is None and forced(tool_choice="auto") is None
    named = forced(tool_choice={"type": "function", "function": {"name": "look_up"}})
    tag = json.loads(named.text)["format"]
    assert tag["begin"] == '<tool_call>\n{"name": "look_up", "arguments": '
    assert tag["content"]["json_schema"] == SCHEMA
    assert tag["end"] == "}\n</tool_call>"
    required = json.loads(forced(tool_choice="required").text)["format"]
    assert [one["content"]["json_schema"] for one in required["tags"]] == [
        SCHEMA,
        {"type": "object"},
    ]
    assert required["at_least_one"] and not required["stop_after_first"]
    one = json.loads(forced(tool_choice="required", parallel_tool_calls=False).text)["format"]
    assert one["stop_after_first"]


@pytest.mark.parametrize(
    ("grammar", "content"),
    [
        (Grammar.regex("a"), {"type": "regex", "pattern": "a"}),
        (Grammar.ebnf('root ::= "a"'), {"type": "grammar", "grammar": 'root ::= "a"'}),
        (
            Grammar.json_object(),
            {"type": "json_schema", "json_schema": {"type": "object"}, "max_whitespace_cnt": 20},
        ),
        (
            Grammar.json_schema(SCHEMA),
            {"type": "json_schema", "json_schema": SCHEMA, "max_whitespace_cnt": 20},
        ),
        (Grammar.structural_tag({"format": {"type": "any_text"}}), {"type": "any_text"}),
    ],
)
def test_thinking_comes_first(grammar, content):
    for inside in (False, True):
        first, answer = json.loads(after_thinking(grammar, inside=inside).text)["format"][
            "elements"
        ]
        assert answer == content
        thinking = (first if inside else first["content"])["elements"][0]
        assert (thinking["begin"], thinking["end"]) == ("" if inside else "<think>", "</think>")
        assert (first["type"] == "optional") == (not inside)


@pytest.mark.parametrize(
    "choice", ["always", {"type": "function"}, {"type": "function", "function": {"name": "no"}}]
)
def test_a_call_of_nothing(choice):
    with pytest.raises(InvalidParameterError, match="look_up, stop"):
        forced(tool_choice=choice)


@pytest.mark.parametrize("tool", [{}, {"function": "f"}, {"function": {"name": 5}}])
def test_a_forced_call_needs_tools_with_names(tool):
    with pytest.raises(InvalidParameterError, match="a tool is") as refused:
        forced_tool_call([tool], "required")
    assert refused.value.param == "tools"
