"""Pace: how long a request may take, by answers that ended."""

from __future__ import annotations

import pytest

from hpcserve.engine.pace import Pace
from hpcserve.sampling_params import SamplingParams


def test_nothing_measured_says_nothing():
    pace = Pace()
    pace.add(3.0, 0)
    assert pace.seconds_for(SamplingParams(max_tokens=1000)) == 0.0


@pytest.mark.parametrize(
    ("params", "tokens"),
    [
        ({"max_tokens": 50}, 50),
        ({"max_tokens": 32_000}, 200),  # nobody gets that many
        ({}, 200),
        ({"max_tokens": 32_000, "min_tokens": 500}, 500),
        ({"max_tokens": 32_000, "ignore_eos": True}, 32_000),
    ],
)
def test_tokens_that_count(params, tokens):
    pace = Pace()
    pace.add(4.0, 200)
    assert pace.seconds_for(SamplingParams(**params)) == pytest.approx(tokens * 0.02)


def test_one_long_answer_does_not_make_all_long():
    pace = Pace()
    for _ in range(49):
        pace.add(1.0, 100)
    pace.add(100.0, 10_000)
    assert 500 < pace.seconds_for(SamplingParams()) / 0.01 < 5_000


def test_a_new_pace_wins_and_short_answers_weigh_little():
    pace = Pace()
    for _ in range(20):
        pace.add(1.0, 100)
    pace.add(1.0, 1)  # mostly its wait
    assert pace.seconds_for(SamplingParams(max_tokens=100)) == pytest.approx(1.05, abs=0.02)
    for _ in range(400):
        pace.add(10.0, 100)
    assert pace.seconds_for(SamplingParams(max_tokens=100)) == pytest.approx(10.0, abs=0.1)
