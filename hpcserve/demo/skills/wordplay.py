"""Repeat, reverse and spell a word."""

from __future__ import annotations

from hpcserve.demo.conversation import Episode, Message
from hpcserve.demo.phrasing import dress, fill
from hpcserve.demo.split import Draw

__all__ = ["repeat", "reverse", "spell", "spelled"]

_REPEAT = (
    "Repeat the word {word}.",
    "Repeat after me: {word}",
    "Say {word}.",
    "Repeat: {word}",
    "Please repeat {word}.",
    "Echo {word}.",
    "Say the word {word}.",
    "Write the word {word}.",
    "Repeat this word: {word}",
    "Can you repeat the word {word}?",
    "Just say {word}.",
    "Copy this word: {word}",
)
_REVERSE = (
    "Reverse the word {word}.",
    "Write {word} backwards.",
    "Spell {word} backwards as one word.",
    "What is {word} backwards?",
    "Reverse {word}.",
    "Turn the word {word} around.",
    "What do you get when you reverse {word}?",
    "Write the word {word} in reverse.",
    "Reverse the letters of {word}.",
    "Reverse this word: {word}",
    "Can you reverse the word {word}?",
    "{word} in reverse, please.",
)
_SPELL = (
    "Spell the word {word}.",
    "Spell {word}.",
    "How do you spell {word}?",
    "Can you spell {word}?",
    "Spell out {word}.",
    "What are the letters of {word}?",
    "Spell this word: {word}",
    "Please spell the word {word} letter by letter.",
    "Give me the spelling of {word}.",
    "How is {word} spelled?",
    "Write {word} letter by letter.",
    "Spelling of {word}?",
)
_QUOTES = ("{word}", "{word}", "{word}", "'{word}'", "'{word}'", '"{word}"', '"{word}"', "`{word}`")


def spelled(word: str) -> str:
    """Return the letters of ``word`` joined by dashes."""
    return "-".join(word)


def repeat(draw: Draw) -> Episode:
    """Ask to repeat a word or, one time in four, a phrase of several words."""
    count = draw.rng.randint(2, 6) if draw.chance(0.25) else 1
    text = " ".join(draw.word() for _ in range(count))
    return _episode(draw, "repeat", _REPEAT, text, text, f"I only have to say {text}.")


def reverse(draw: Draw) -> Episode:
    """Ask for a word backwards."""
    word = draw.word()
    thought = f"The letters are {spelled(word)}. Backwards they are {spelled(word[::-1])}."
    return _episode(draw, "reverse", _REVERSE, word, word[::-1], thought)


def spell(draw: Draw) -> Episode:
    """Ask for the letters of a word."""
    word = draw.word()
    thought = f"The word {word} has {len(word)} letters: {' '.join(word)}."
    return _episode(draw, "spell", _SPELL, word, spelled(word), thought)


def _episode(
    draw: Draw, skill: str, phrasings: tuple[str, ...], word: str, answer: str, thought: str
) -> Episode:
    template = draw.choice(phrasings)
    quotes = "{word}" if " " in word else draw.choice(_QUOTES)
    if not (template.endswith("{word}") and quotes == "{word}"):
        # Otherwise a closing politeness would look like part of what is repeated.
        template = dress(draw, fill(template, word=quotes))
    return Episode(
        skill=skill,
        messages=(Message("user", fill(template, word=word)), Message("assistant", answer)),
        check=lambda given: given.strip().rstrip(".") == answer,
        thought=thought,
    )
