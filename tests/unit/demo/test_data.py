"""The generator: deterministic, split in two, and with checks that tell right from wrong."""

import itertools
import random

import pytest

from hpcserve.demo.data import EVALUATED, held_out, training_stream
from hpcserve.demo.facts import COUNTRIES
from hpcserve.demo.skills.arithmetic import draw_sum, last_number
from hpcserve.demo.skills.json_answer import json_check
from hpcserve.demo.skills.thinking import thoughtful, without_thoughts
from hpcserve.demo.skills.tools import call_text, parse_calls
from hpcserve.demo.split import HELD_OUT_SHARE, Draw, split_of


def _texts(stream, count):
    return [tuple(m.content for m in one.messages) for one in itertools.islice(stream, count)]


def test_same_seed_same_conversations():
    assert _texts(training_stream(3), 200) == _texts(training_stream(3), 200)
    assert _texts(training_stream(3), 200) != _texts(training_stream(4), 200)


@pytest.mark.parametrize("skill", EVALUATED)
def test_held_out_is_deterministic(skill):
    first, second = (
        [one.messages for one in held_out(skill, 10, seed=5)],
        [one.messages for one in held_out(skill, 10, seed=5)],
    )
    assert first == second


@pytest.mark.parametrize("skill", EVALUATED)
def test_checks_accept_the_reference_and_reject_others(skill):
    examples = held_out(skill, 20, seed=1)
    for one in examples:
        assert one.check(one.answer), one
        assert not one.check("")
        assert not one.check("I like trains.")


def test_share_of_held_out_keys():
    keys = [f"word {number}" for number in range(20_000)]
    share = sum(split_of(key) == "held_out" for key in keys) / len(keys)
    assert abs(share - HELD_OUT_SHARE) < 0.01


@pytest.mark.parametrize("what", ["word", "name", "city"])
def test_drawn_things_never_cross_the_split(what):
    drawn = {}
    for split in ("train", "held_out"):
        draw = Draw(random.Random(0), split)
        drawn[split] = {getattr(draw, what)().lower() for _ in range(800)}
    assert not drawn["train"] & drawn["held_out"]


def test_pairs_of_numbers_never_cross_the_split():
    drawn = {}
    for split in ("train", "held_out"):
        draw = Draw(random.Random(0), split)
        drawn[split] = {draw_sum(draw).key for _ in range(2_000)}
    assert not drawn["train"] & drawn["held_out"]


def test_one_digit_sums_are_always_trained():
    draw = Draw(random.Random(0), "held_out")
    assert not any(draw_sum(draw).is_table for _ in range(500))


def test_no_single_turn_question_is_in_both_splits():
    held = {
        one.messages[-2].content
        for skill in ("capitals", "arithmetic", "reverse", "spell", "json")
        for one in held_out(skill, 40, seed=2)
    }
    trained = {
        m.content for one in itertools.islice(training_stream(9), 4_000) for m in one.messages
    }
    assert not held & trained


def test_countries():
    assert len(COUNTRIES) == len({country.name for country in COUNTRIES}) >= 195
    capitals = {country.name: country.capital for country in COUNTRIES}
    assert capitals["France"] == "Paris"
    assert capitals["United States"] == "Washington, D.C."
    assert all(name and capital for name, capital in capitals.items())


def test_every_training_conversation_ends_with_a_right_answer():
    for one in itertools.islice(training_stream(2), 1_000):
        assert one.messages[-1].role == "assistant"
        if one.thinking is not False:
            assert one.check(one.answer), one


def test_last_number():
    assert last_number("12 - 30 = -18.") == -18
    assert last_number("none") is None


def test_json_check_wants_nothing_but_the_object():
    check = json_check({"a": 1})
    assert check('{"a": 1}')
    assert not check('{"a": 2}')
    assert not check('Here: {"a": 1}')


def test_tool_calls_are_read_back():
    text = call_text("f", {"x": 1})
    assert parse_calls(f"{text}\n{text}") == [{"name": "f", "arguments": {"x": 1}}] * 2
    assert parse_calls(f"Sure! {text}") is None
    assert parse_calls(f"{text} done") is None
    assert parse_calls("<tool_call>\n{broken\n</tool_call>") is None


def test_thoughts_are_taken_off():
    assert without_thoughts(thoughtful("why", "because")) == "because"
    assert without_thoughts("because") is None
