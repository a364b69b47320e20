"""Countries and their capitals, asked in many ways."""

from __future__ import annotations

from hpcserve.demo.conversation import Episode, Message
from hpcserve.demo.facts import COUNTRIES, Country
from hpcserve.demo.phrasing import dress, fill
from hpcserve.demo.split import Draw

__all__ = ["capital_fact", "capitals"]

_ASK_CAPITAL = (
    "What is the capital of {country}?",
    "What's the capital of {country}?",
    "What is the capital city of {country}?",
    "Which city is the capital of {country}?",
    "Tell me the capital of {country}.",
    "Name the capital of {country}.",
    "Capital of {country}?",
    "{country}: what is its capital?",
    "Do you know the capital of {country}?",
    "Can you tell me the capital of {country}?",
    "Give me the capital of {country}.",
    "The capital of {country} is which city?",
    "What city is the capital of {country}?",
    "I need to know the capital of {country}.",
    "What is {country}'s capital?",
    "I am travelling to {country}. What is the capital?",
    "The capital of {country}?",
    "The capital of {country} is",
    "Which city is the seat of {country} as its capital?",
    "Could you please tell me what the capital of {country} is?",
    "My quiz asks for the capital of {country}. What do I write?",
    "Remind me, what is the capital of {country} called?",
)
_ASK_COUNTRY = (
    "{capital} is the capital of which country?",
    "Which country has the capital {capital}?",
    "What country is {capital} the capital of?",
    "Of which country is {capital} the capital?",
    "Name the country whose capital is {capital}.",
    "Tell me which country has {capital} as its capital.",
)
_ASK_BRIEFLY = (
    "What is the capital of {country}? Answer with one word.",
    "What is the capital of {country}? Just the city, please.",
    "Answer with the name only: what is the capital of {country}?",
    "Capital of {country}, only the name.",
)


def capital_fact(draw: Draw, phrasing: str) -> Country:
    """Draw a country that lies in this split together with ``phrasing``."""
    return draw.fresh(
        lambda: draw.choice(COUNTRIES), lambda country: f"capital {phrasing} {country.name}"
    )


def capitals(draw: Draw) -> Episode:
    """Ask for a capital (or, one time in seven, for the country of a capital)."""
    luck = draw.rng.random()
    if luck < 0.14:
        phrasing = draw.choice(_ASK_COUNTRY)
        country = capital_fact(draw, phrasing)
        question = fill(dress(draw, phrasing, shout=True), capital=country.capital)
        answer, key = _country_sentence(country), country.name
        thought = (
            f"The question names the city {country.capital}. "
            f"It is the capital of {country.in_sentence}."
        )
    else:
        brief = luck < 0.22
        phrasing = draw.choice(_ASK_BRIEFLY if brief else _ASK_CAPITAL)
        country = capital_fact(draw, phrasing)
        question = fill(dress(draw, phrasing, shout=True), country=_spoken(draw, country))
        answer, key = (country.capital if brief else _capital_sentence(country)), country.capital
        thought = (
            f"The question is about {country.in_sentence}. Its capital is {_end(country.capital)}"
        )
    return Episode(
        skill="capitals",
        messages=(Message("user", question), Message("assistant", answer)),
        check=lambda text: key in text,
        thought=thought,
    )


def _spoken(draw: Draw, country: Country) -> str:
    name = country.in_sentence if draw.chance(0.9) else country.name
    luck = draw.rng.random()
    if luck < 0.12:
        return name.lower()
    return name.upper() if luck < 0.15 else name


def _end(text: str) -> str:
    return text if text.endswith(".") else text + "."


def _capital_sentence(country: Country) -> str:
    return f"The capital of {country.in_sentence} is {_end(country.capital)}"


def _country_sentence(country: Country) -> str:
    return f"{country.capital} is the capital of {country.in_sentence}."
