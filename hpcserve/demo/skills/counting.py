"""Count, and recite short lists: answers that can be long but are easy to get right."""

from __future__ import annotations

from hpcserve.demo.conversation import Episode, Message
from hpcserve.demo.phrasing import dress, fill
from hpcserve.demo.split import Draw

__all__ = ["counting"]

_COUNT = (
    "Count from {a} to {b}.",
    "Count from {a} to {b}",
    "List the numbers from {a} to {b}.",
    "Write the numbers {a} to {b}.",
    "Can you count from {a} to {b}?",
    "Say all numbers from {a} to {b}.",
)
_COUNT_TO = ("Count to {b}.", "Count up to {b}.", "Can you count to {b}?", "Please count to {b}.")
_LISTS: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        (
            "List the days of the week.",
            "What are the days of the week?",
            "Name all days of the week.",
        ),
        "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday",
    ),
    (
        ("List the months of the year.", "What are the months?", "Name all months of the year."),
        "January, February, March, April, May, June, July, August, September, October, "
        "November, December",
    ),
    (
        ("Say the alphabet.", "Recite the alphabet.", "What are the letters of the alphabet?"),
        ", ".join("abcdefghijklmnopqrstuvwxyz"),
    ),
)


def counting(draw: Draw) -> Episode:
    """Ask to count between two numbers up to 100, or for the days, the months, the alphabet."""
    if draw.split == "train" and draw.chance(0.12):
        phrasings, answer = draw.choice(_LISTS)
        return _episode(dress(draw, draw.choice(phrasings)), answer, "This is a list that I know.")

    def make() -> tuple[int, int]:
        first = 1 if draw.chance(0.4) else draw.rng.randint(0, 60)
        return first, first + (
            draw.rng.randint(2, 20) if draw.chance(0.85) else draw.rng.randint(21, 40)
        )

    first, last = draw.fresh(
        make, lambda pair: f"count {pair}" if pair[1] > 10 or draw.split != "train" else ""
    )
    if draw.split == "train" and draw.chance(0.04):
        first, last = 1, 100
    phrasing = draw.choice(_COUNT_TO if first == 1 and draw.chance(0.4) else _COUNT)
    answer = ", ".join(str(number) for number in range(first, last + 1))
    return _episode(
        fill(dress(draw, phrasing), a=first, b=last), answer, f"I count from {first} to {last}."
    )


def _episode(text: str, answer: str, thought: str) -> Episode:
    return Episode(
        skill="counting",
        messages=(Message("user", text), Message("assistant", answer)),
        check=lambda given: given.strip() == answer,
        thought=thought,
    )
