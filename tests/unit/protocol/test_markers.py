import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from hpcserve.protocol.markers import (
    ReasoningSplitter,
    ToolCallSplitter,
    length_of_partial,
    parse_tool_call,
)

CALL = '<tool_call>\n{"name": "f", "arguments": {"x": "é"}}\n</tool_call>'


def pieces_of(text, cuts):
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    return [text[a:b] for a, b in pairwise(bounds)]


def split_tools(pieces):
    splitter = ToolCallSplitter()
    found = [splitter.add(piece) for piece in pieces]
    text = "".join(text for text, _ in found) + splitter.flush()
    return text, [call for _, calls in found for call in calls]


def split_reasoning(pieces, inside=False):
    splitter = ReasoningSplitter(inside=inside)
    found = [*(splitter.add(piece) for piece in pieces), splitter.flush()]
    return "".join(a for a, _ in found), "".join(b for _, b in found)


cuts = st.lists(st.integers(0, 200), max_size=12)


@given(cuts=cuts)
def test_calls_are_found_however_the_text_is_cut(cuts):
    text, calls = split_tools(pieces_of("I look.\n" + CALL + "\n" + CALL, cuts))
    assert text.strip() == "I look."
    assert [call.function.name for call in calls] == ["f", "f"]
    assert json.loads(calls[0].function.arguments) == {"x": "é"}
    assert calls[0].id != calls[1].id


@given(cuts=cuts)
def test_what_is_no_call_stays_text(cuts):
    for text in (
        "a < b <tool> <tool_call>{broken</tool_call> end",
        "open <tool_call>{",
        "<tool_cal",
    ):
        assert split_tools(pieces_of(text, cuts)) == (text, [])


def test_forms_of_a_call():
    assert parse_tool_call('{"name": "f"}').function.arguments == "{}"
    assert parse_tool_call('{"name": "f", "parameters": {"a": 1}}').function.arguments == '{"a": 1}'
    assert parse_tool_call('{"name": "f", "arguments": "{}"}').function.arguments == "{}"
    assert parse_tool_call('["f"]') is None
    assert parse_tool_call('{"name": 3}') is None
    assert parse_tool_call('{"name": "f", "arguments": {"x": NaN}}') is None
    assert parse_tool_call('{"name": "f", "arguments": ' + "[" * 100_000) is None


def test_a_call_is_text_that_can_be_sent():
    """Models write escapes, and may stop within a pair of them."""
    half = r'{"name": "f", "arguments": {"x": "\ud83d", "y": "é"}}'
    arguments = parse_tool_call(half).function.arguments
    assert arguments.encode() and json.loads(arguments) == {"x": "\ud83d", "y": "é"}
    whole = r'{"name": "f", "arguments": {"x": "\ud83d\ude00"}}'
    assert parse_tool_call(whole).function.arguments == '{"x": "😀"}'
    assert parse_tool_call(r'{"name": "\ud83d", "arguments": {}}') is None
    assert parse_tool_call(r'{"name": "f", "arguments": "\ud83d"}') is None


@given(cuts=cuts)
def test_thinking_is_told_from_the_answer(cuts):
    cut = pieces_of("\n<think>\nhmm </ \n\n</think>\n\nParis </think>", cuts)
    assert split_reasoning(cut) == ("hmm </ ", "Paris </think>")
    assert split_reasoning(pieces_of("hmm\n</think>\nyes", cuts), inside=True) == ("hmm", "yes")
    assert split_reasoning(pieces_of("just text", cuts)) == ("", "just text")
    assert split_reasoning(pieces_of("<think>never ends </thi", cuts)) == ("never ends </thi", "")


def test_partial_ends():
    assert length_of_partial("abc<thi", "<think>") == 4
    assert length_of_partial("<<", "<think>") == 1
    assert length_of_partial("abc", "<think>") == 0
    assert length_of_partial("<think>", "<think>") == 0
