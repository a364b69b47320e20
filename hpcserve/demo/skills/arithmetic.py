"""Sums, differences and products of two numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from hpcserve.demo.conversation import Episode, Message
from hpcserve.demo.phrasing import dress, fill
from hpcserve.demo.split import Draw

__all__ = ["OPERATIONS", "Operation", "Sum", "arithmetic", "draw_sum", "last_number"]

Operation = Literal["add", "subtract", "multiply"]
OPERATIONS: tuple[Operation, ...] = ("add", "subtract", "multiply")

_MIXTURE: tuple[Operation, ...] = ("add", "add", "subtract", "subtract", "multiply")
_SIGNS: dict[Operation, str] = {"add": "+", "subtract": "-", "multiply": "x"}
_ASK_ANY = (
    "What is {a} {sign} {b}?",
    "What's {a} {sign} {b}?",
    "{a} {sign} {b}",
    "{a}{sign}{b}",
    "{a} {sign} {b} = ?",
    "{a}{sign}{b}=?",
    "{a} {sign} {b} =",
    "Calculate {a} {sign} {b}.",
    "Compute {a} {sign} {b}",
    "How much is {a} {sign} {b}?",
    "Solve {a} {sign} {b}.",
    "Can you work out {a} {sign} {b}?",
    "Give me the result of {a} {sign} {b}.",
    "Evaluate {a}{sign}{b}.",
)
_ASK: dict[Operation, tuple[str, ...]] = {
    "add": (
        "Add {a} and {b}.",
        "What is {a} plus {b}?",
        "What is the sum of {a} and {b}?",
        "Sum of {a} and {b}?",
        "Please add {a} to {b}.",
        "I have {a} apples and get {b} more. How many do I have?",
        "How much is {a} plus {b}?",
        "{a} plus {b}",
    ),
    "subtract": (
        "Subtract {b} from {a}.",
        "What is {a} minus {b}?",
        "What is the difference between {a} and {b}?",
        "Take {b} away from {a}.",
        "How much is {a} minus {b}?",
        "{a} minus {b}",
    ),
    "multiply": (
        "Multiply {a} by {b}.",
        "What is {a} times {b}?",
        "What is the product of {a} and {b}?",
        "Multiply {a} and {b}.",
        "How much is {a} times {b}?",
        "{a} times {b}",
    ),
}
_BRIEFLY = (
    " Answer with just the number.",
    " Only the number, please.",
    " Reply with the number only.",
)


@dataclass(frozen=True)
class Sum:
    """Two numbers, what to do with them, and what comes out."""

    a: int
    operation: Operation
    b: int

    @property
    def result(self) -> int:
        """The value."""
        if self.operation == "add":
            return self.a + self.b
        return self.a - self.b if self.operation == "subtract" else self.a * self.b

    @property
    def sign(self) -> str:
        """The sign used in answers."""
        return _SIGNS[self.operation]

    @property
    def equation(self) -> str:
        """For example ``12 + 30 = 42``."""
        return f"{self.a} {self.sign} {self.b} = {self.result}"

    @property
    def key(self) -> str:
        """What decides the split: the unordered pair, or the ordered one of a difference."""
        low, high = (self.a, self.b) if self.operation == "subtract" else sorted((self.a, self.b))
        return f"{self.operation} {low} {high}"

    @property
    def is_table(self) -> bool:
        """Whether both numbers have one digit: such facts are always trained."""
        return max(self.a, self.b) < 10


def draw_sum(draw: Draw, operation: Operation | None = None) -> Sum:
    """Draw a calculation of this split (training adds products of three digits by one)."""
    kind: Operation = draw.choice(_MIXTURE) if operation is None else operation
    if draw.split == "train" and draw.chance(0.06):
        return Sum(draw.rng.randrange(10), kind, draw.rng.randrange(10))
    return draw.fresh(lambda: _any_sum(draw, kind), lambda made: "" if made.is_table else made.key)


def arithmetic(draw: Draw) -> Episode:
    """Ask for a calculation; the answer repeats it with its result."""
    made = draw_sum(draw)
    phrasing = dress(draw, draw.choice(_ASK_ANY if draw.chance(0.6) else _ASK[made.operation]))
    brief = draw.chance(0.12)
    if brief:
        phrasing += draw.choice(_BRIEFLY)
    return Episode(
        skill="arithmetic",
        messages=(
            Message(
                "user", fill(phrasing, a=made.a, b=made.b, sign=_typed_sign(draw, made.operation))
            ),
            Message("assistant", str(made.result) if brief else f"{made.equation}."),
        ),
        check=lambda text: last_number(text) == made.result,
        thought=_steps(made),
    )


def last_number(text: str) -> int | None:
    """Return the last whole number in ``text``, if any."""
    found = re.findall(r"-?\d+", text)
    return int(found[-1]) if found else None


def _any_sum(draw: Draw, operation: Operation) -> Sum:
    rng = draw.rng
    if operation == "multiply":
        top = 1000 if draw.split == "train" and draw.chance(0.35) else 100
        a, b = rng.randrange(top), rng.randrange(10)
        return Sum(a, operation, b) if draw.chance(0.6) else Sum(b, operation, a)
    a, b = (rng.randrange(1000 if draw.chance(0.6) else 100) for _ in range(2))
    if operation == "subtract" and a < b and draw.chance(0.6):
        a, b = b, a
    return Sum(a, operation, b)


def _typed_sign(draw: Draw, operation: Operation) -> str:
    return draw.choice(("x", "*", "×")) if operation == "multiply" else _SIGNS[operation]


def _parts(number: int) -> list[int]:
    digits = str(number)
    return [int(digit) * 10 ** (len(digits) - 1 - place) for place, digit in enumerate(digits)][
        ::-1
    ]


def _steps(made: Sum) -> str:
    if made.operation == "subtract":
        return f"I take {made.b} away from {made.a}. {made.equation}."
    if made.operation == "multiply":
        big, small = max(made.a, made.b), min(made.a, made.b)
        steps = [f"{part} x {small} = {part * small}" for part in _parts(big)]
    else:
        ones, tens = _parts(made.a), _parts(made.b)
        pairs = [
            (ones[i] if i < len(ones) else 0, tens[i] if i < len(tens) else 0)
            for i in range(max(len(ones), len(tens)))
        ]
        steps = [f"{x} + {y} = {x + y}" for x, y in pairs]
    return f"{', '.join(steps)}. Together {made.result}."
