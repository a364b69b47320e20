"""The wall between training and held-out data, and the random source that respects it."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from hpcserve.demo.words import (
    CITIES,
    COMMON_WORDS,
    FIRST_NAMES,
    pseudo_city,
    pseudo_name,
    pseudo_word,
)

__all__ = ["HELD_OUT_SHARE", "Draw", "Split", "split_of"]

Split = Literal["train", "held_out"]
T = TypeVar("T")

HELD_OUT_SHARE = 0.1
"""Share of all keys (a pair of numbers, a word, a phrasing with a country) kept out of training."""


def split_of(key: str) -> Split:
    """Say on which side of the wall ``key`` lies; the same on every machine and for every seed.

    The empty key stands for what everybody should know (``2 + 2``): it is always trained.
    """
    if not key:
        return "train"
    return "held_out" if zlib.crc32(key.encode()) % 1000 < HELD_OUT_SHARE * 1000 else "train"


@dataclass(frozen=True)
class Draw:
    """A random source bound to one split: what it draws never crosses the wall."""

    rng: random.Random
    split: Split

    def chance(self, probability: float) -> bool:
        """Return true with ``probability``."""
        return self.rng.random() < probability

    def choice(self, options: Sequence[T]) -> T:
        """Pick one of ``options`` evenly."""
        return options[int(self.rng.random() * len(options))]

    def fresh(self, make: Callable[[], T], key: Callable[[T], str]) -> T:
        """Draw with ``make`` until the key of what it made lies in this split."""
        while True:
            made = make()
            if split_of(key(made)) == self.split:
                return made

    def word(self) -> str:
        """Draw a word of 3 to 8 letters, real or made up, at times in capitals."""

        def make() -> str:
            real = self.chance(0.4 if self.split == "train" else 0.5)
            if real:
                return self.choice(COMMON_WORDS)
            longest = 11 if self.split == "train" and self.chance(0.15) else 8
            return pseudo_word(self.rng, longest=longest)

        word = self.fresh(make, lambda word: f"word {word}")
        luck = self.rng.random()
        if luck < 0.1:
            return word.capitalize()
        return word.upper() if luck < 0.13 else word

    def name(self) -> str:
        """Draw a first name, real or made up."""

        def make() -> str:
            return self.choice(FIRST_NAMES) if self.chance(0.5) else pseudo_name(self.rng)

        return self.fresh(make, lambda name: f"name {name}")

    def city(self) -> str:
        """Draw a city, real or, three times in ten, made up."""

        def make() -> str:
            return self.choice(CITIES) if self.chance(0.7) else pseudo_city(self.rng)

        return self.fresh(make, lambda city: f"city {city}")
