"""Answers as a JSON object with the keys that were asked for."""

from __future__ import annotations

import json
from collections.abc import Callable

from hpcserve.demo.conversation import Check, Episode, Message
from hpcserve.demo.phrasing import dress, fill
from hpcserve.demo.skills.arithmetic import draw_sum
from hpcserve.demo.skills.capitals import capital_fact
from hpcserve.demo.split import Draw

__all__ = ["json_answer", "json_check"]

Fields = list[tuple[tuple[str, ...], object]]
"""For each field of the object: the names it may be asked for by, and its value."""

_REQUESTS = (
    "Answer as a JSON object with keys {keys}.",
    "Answer as a JSON object with the keys {keys}.",
    "Answer in JSON with keys {keys}.",
    "Reply with a JSON object with keys {keys}.",
    "Give the answer as JSON with the keys {keys}.",
    "Respond with a JSON object that has the keys {keys}.",
    "Return JSON with keys {keys}.",
    "Output only a JSON object with the fields {keys}.",
    "Use JSON with the keys {keys}.",
    "Format the answer as a JSON object with keys {keys}.",
)
_FREELY = (
    "What is the capital of {country}? Answer as JSON.",
    "What is the capital of {country}? Answer in JSON.",
    "What is the capital of {country}? Answer as a JSON object.",
    "Give me the capital of {country} as JSON.",
    "Tell me the capital of {country} as a JSON object.",
    "Answer in JSON: what is the capital of {country}?",
)
_SYSTEM_REQUESTS = (
    "Always answer as a JSON object with keys {keys}.",
    "You answer only in JSON, with the keys {keys}.",
    "Respond with a JSON object with keys {keys} and nothing else.",
)
_COUNTRY = ("country", "nation", "state", "land", "country_name", "name")
_CAPITAL = ("capital", "city", "capital_city", "answer", "result", "capital_name")
_FIRST = ("a", "x", "first", "left", "first_number", "num1")
_SECOND = ("b", "y", "second", "right", "second_number", "num2")
_RESULT = ("result", "answer", "value", "total", "output")
_NAMED = {
    "add": ("sum", "total", *_RESULT),
    "subtract": ("difference", *_RESULT),
    "multiply": ("product", *_RESULT),
}
_PLAIN = {
    "add": "What is {a} + {b}?",
    "subtract": "What is {a} - {b}?",
    "multiply": "What is {a} x {b}?",
}
_VERBAL = {
    "add": "Add {a} and {b}.",
    "subtract": "Subtract {b} from {a}.",
    "multiply": "Multiply {a} by {b}.",
}
_PERSON = (
    "{name} is {age} years old and lives in {city}.",
    "{name}, {age}, comes from {city}.",
    "My colleague {name} lives in {city} and is {age} years old.",
    "In {city} lives {name}, who is {age}.",
    "{name} is {age}. Home: {city}.",
)
_EXTRACT = ("Extract the data.", "Extract the person.", "Who is this?", "Describe the person.", "")


def json_answer(draw: Draw) -> Episode:
    """Ask for a fact, a calculation, a person's data or a word's letters as JSON."""
    makers: tuple[Callable[[Draw], tuple[str, Fields]], ...] = (_capital, _sum, _person, _word)

    def make() -> tuple[str, dict[str, object]]:
        question, fields = draw.choice(makers)(draw)
        return question, {draw.choice(names): value for names, value in fields}

    question, named = draw.fresh(make, lambda made: f"json {made[0]} {' '.join(made[1])}")
    answer = json.dumps(named)
    if draw.chance(0.08):
        return _without_keys(draw)
    by_system = draw.chance(0.2)
    request = fill(
        draw.choice(_SYSTEM_REQUESTS if by_system else _REQUESTS), keys=_listed(draw, list(named))
    )
    if not by_system:
        question = (
            f"{question} {request}".strip()
            if draw.chance(0.75)
            else f"{request} {question}".strip()
        )
        question = question.rstrip(".") if draw.chance(0.1) else question
    return Episode(
        skill="json",
        messages=(Message("user", question), Message("assistant", answer)),
        check=json_check(named),
        thought=f"I need a JSON object with the keys {', '.join(named)}.",
        system=request if by_system else None,
    )


def _without_keys(draw: Draw) -> Episode:
    """Ask for a capital as JSON without saying which keys."""
    phrasing = draw.choice(_FREELY)
    country = capital_fact(draw, phrasing)
    value = {"country": country.name, "capital": country.capital}
    return Episode(
        skill="json",
        messages=(
            Message("user", fill(phrasing, country=country.in_sentence)),
            Message("assistant", json.dumps(value)),
        ),
        check=json_check(value),
        thought="I need a JSON object with the country and its capital.",
    )


def json_check(expected: object) -> Check:
    """Return a check that the whole answer is JSON equal to ``expected``."""

    def check(text: str) -> bool:
        try:
            return bool(json.loads(text) == expected)
        except json.JSONDecodeError:
            return False

    return check


def _capital(draw: Draw) -> tuple[str, Fields]:
    phrasing = draw.choice(
        ("What is the capital of {country}?", "Tell me the capital of {country}.", "{country}?")
    )
    country = capital_fact(draw, phrasing)
    fields: Fields = [(_COUNTRY, country.name), (_CAPITAL, country.capital)]
    luck = draw.rng.random()
    if luck < 0.2:
        fields = fields[1:]
    elif luck < 0.4:
        fields = fields[::-1]
    return fill(dress(draw, phrasing), country=country.in_sentence), fields


def _sum(draw: Draw) -> tuple[str, Fields]:
    made = draw_sum(draw)
    phrasing = draw.choice((_PLAIN, _VERBAL))[made.operation]
    fields: Fields = [(_FIRST, made.a), (_SECOND, made.b), (_NAMED[made.operation], made.result)]
    return fill(dress(draw, phrasing), a=made.a, b=made.b), fields[2:] if draw.chance(
        0.3
    ) else fields


def _person(draw: Draw) -> tuple[str, Fields]:
    name, age, city = draw.name(), draw.rng.randint(4, 99), draw.city()
    text = fill(draw.choice(_PERSON), name=name, age=age, city=city)
    fields: Fields = [
        (("name", "person", "first_name"), name),
        (("age", "years", "age_in_years"), age),
        (("city", "home", "place", "town"), city),
    ]
    draw.rng.shuffle(fields)
    return f"{text} {draw.choice(_EXTRACT)}".strip(), fields[: draw.rng.randint(1, 3)]


def _word(draw: Draw) -> tuple[str, Fields]:
    word = draw.word()
    question = fill(
        draw.choice(("Spell the word {word}.", "Give me the letters of {word}.")), word=word
    )
    return question, [
        (("word", "text", "input"), word),
        (("letters", "spelling", "characters"), list(word)),
    ]


def _listed(draw: Draw, keys: list[str]) -> str:
    quote = draw.choice(("", "", "", "'", '"', "`"))
    quoted = [f"{quote}{key}{quote}" for key in keys]
    if len(quoted) == 1:
        return quoted[0]
    return ", ".join(quoted[:-1]) + draw.choice((" and ", " and ", ", ", ", and ")) + quoted[-1]
