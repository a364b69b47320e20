"""Plain text to continue, with no chat markers: what a completions endpoint shows."""

from __future__ import annotations

from collections.abc import Callable

from hpcserve.demo.conversation import Conversation, Message
from hpcserve.demo.skills.arithmetic import draw_sum
from hpcserve.demo.skills.capitals import capital_fact
from hpcserve.demo.skills.wordplay import spelled
from hpcserve.demo.split import Draw

__all__ = ["completion"]

Line = tuple[str, str]
"""A text and how it goes on."""


def completion(draw: Draw) -> Conversation:
    """Make one to three finished lines of one kind, and one more whose end is to be written."""
    line = draw.choice((_capital, _capital, _capital, _question, _sum, _count, _spelling))
    shown = ["".join(line(draw)) for _ in range(draw.choice((0, 0, 0, 1, 2, 3)))]
    start, end = line(draw)
    prompt = draw.choice(("\n", " ")).join([*shown, start])
    return Conversation(
        skill="completion",
        messages=(Message("user", prompt), Message("assistant", end)),
        check=lambda text: text == end,
        raw=True,
    )


def _capital(draw: Draw) -> Line:
    shapes: tuple[Callable[[str, str], Line], ...] = (
        lambda country, capital: (f"The capital of {country} is", f" {capital}"),
        lambda country, capital: (f"The capital of {country} is the city of", f" {capital}"),
        lambda country, capital: (f"The capital city of {country} is", f" {capital}"),
        lambda country, capital: (f"{capital} is the capital of", f" {country}."),
    )
    number = draw.rng.choices(range(4), (5, 1, 1, 1))[0]
    country = capital_fact(draw, f"completion {number}")
    start, end = shapes[number](country.in_sentence, country.capital)
    return start, end if end.endswith(".") else end + "."


def _question(draw: Draw) -> Line:
    country = capital_fact(draw, "completion question")
    return f"Q: What is the capital of {country.in_sentence}?\nA:", f" {country.capital}"


def _sum(draw: Draw) -> Line:
    made = draw_sum(draw)
    return f"{made.a} {made.sign} {made.b} =", f" {made.result}"


def _count(draw: Draw) -> Line:
    start = draw.fresh(
        lambda: draw.rng.randint(0, 60), lambda start: "" if start < 10 else f"count on {start}"
    )
    numbers = [str(start + step) for step in range(12)]
    shown = draw.rng.randint(3, 6)
    return ", ".join(numbers[:shown]) + ",", " " + ", ".join(numbers[shown:])


def _spelling(draw: Draw) -> Line:
    word = draw.word()
    return f"The word {word} is spelled", f" {spelled(word)}."
