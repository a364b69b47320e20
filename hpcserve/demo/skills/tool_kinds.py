"""The kinds of tools that conversations may offer, each under changing names."""

# The tables below read better as packed lines.
# ruff: noqa: E501

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from hpcserve.demo.skills.arithmetic import draw_sum
from hpcserve.demo.split import Draw
from hpcserve.demo.words import COMMON_WORDS, TOPICS

__all__ = ["TOOL_KINDS", "Parameter", "ToolKind", "Values"]

Values = dict[str, str | int]
"""What the user asked for, by the role each value plays (``city``, ``text``, ...)."""
Result = Callable[[Draw, Values], tuple[str, str]]
"""Makes a tool's reply and the sentence that tells it to the user."""


@dataclass(frozen=True)
class Parameter:
    """One argument: the role of its value, and the names and descriptions it goes by."""

    role: str
    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    kind: Literal["string", "integer"] = "string"


@dataclass(frozen=True)
class ToolKind:
    """What one kind of tool is called, takes, is asked by, and replies."""

    kind: str
    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    asks: tuple[str, ...]
    values: Callable[[Draw], Values]
    result: Result


_CITY = Parameter(
    "city",
    ("city", "location", "place", "town", "city_name"),
    (
        "The city",
        "The name of the city",
        "City name, e.g. Paris",
        "The city and state, e.g. San Francisco, CA",
    ),
)
_LANGUAGES = (
    "French",
    "German",
    "Spanish",
    "Italian",
    "Dutch",
    "Polish",
    "Greek",
    "Danish",
    "Finnish",
    "Turkish",
)
_CURRENCIES = ("USD", "EUR", "GBP", "JPY", "CHF", "CAD", "AUD", "SEK")
_SKIES = ("sunny", "cloudy", "rainy", "windy", "foggy", "clear", "snowy", "partly cloudy")


def _city(draw: Draw) -> Values:
    return {"city": draw.city()}


def _weather_reply(draw: Draw, values: Values) -> tuple[str, str]:
    degrees, sky = draw.rng.randint(-9, 39), draw.choice(_SKIES)
    number = draw.choice(("temperature", "temp", "temperature_c", "degrees"))
    words = draw.choice(("condition", "conditions", "sky", "weather", "description"))
    shapes = (
        json.dumps({number: degrees, words: sky}),
        json.dumps({words: sky, number: degrees}),
        json.dumps({"city": values["city"], number: degrees, words: sky}),
        f"{degrees} degrees, {sky}",
        f"{sky}, {degrees} C",
    )
    return draw.choice(shapes), f"It is {degrees} degrees and {sky} in {values['city']}."


def _time_reply(draw: Draw, values: Values) -> tuple[str, str]:
    clock = f"{draw.rng.randrange(24):02d}:{draw.rng.randrange(60):02d}"
    shapes = (
        clock,
        json.dumps({"time": clock}),
        json.dumps({"city": values["city"], "time": clock}),
    )
    return draw.choice(shapes), f"It is {clock} in {values['city']}."


def _calculation(draw: Draw) -> Values:
    made = draw_sum(draw)
    sign = draw.choice(("*", "x")) if made.operation == "multiply" else made.sign
    return {"expression": f"{made.a} {sign} {made.b}", "result": made.result}


def _number_reply(draw: Draw, values: Values) -> tuple[str, str]:
    result = values["result"]
    return draw.choice(
        (str(result), json.dumps({"result": result}), json.dumps({"value": result}))
    ), (f"The result is {result}.")


def _query(draw: Draw) -> Values:
    words = [
        draw.choice(COMMON_WORDS) if draw.chance(0.7) else draw.word()
        for _ in range(draw.rng.randint(1, 3))
    ]
    return {"query": draw.choice(TOPICS) if draw.chance(0.4) else " ".join(words)}


def _search_reply(draw: Draw, values: Values) -> tuple[str, str]:
    found = " ".join(draw.choice(COMMON_WORDS) for _ in range(draw.rng.randint(2, 6)))
    shapes = (found, json.dumps({"result": found}), json.dumps({"results": [found]}))
    return draw.choice(shapes), f"I found this: {found}."


def _translation(draw: Draw) -> Values:
    return {"text": draw.word(), "language": draw.choice(_LANGUAGES)}


def _translation_reply(draw: Draw, values: Values) -> tuple[str, str]:
    text = draw.word()
    shapes = (text, json.dumps({"translation": text}), json.dumps({"result": text}))
    return draw.choice(shapes), f"In {values['language']}, {values['text']} is {text}."


def _exchange(draw: Draw) -> Values:
    source, target = draw.rng.sample(_CURRENCIES, 2)
    return {"amount": draw.rng.randint(1, 999), "source": source, "target": target}


def _exchange_reply(draw: Draw, values: Values) -> tuple[str, str]:
    amount = draw.rng.randint(1, 999)
    shapes = (str(amount), json.dumps({"amount": amount}), json.dumps({"result": amount}))
    return draw.choice(
        shapes
    ), f"{values['amount']} {values['source']} is {amount} {values['target']}."


def _message(draw: Draw) -> Values:
    text = " ".join(draw.choice(COMMON_WORDS) for _ in range(draw.rng.randint(1, 4)))
    return {"name": draw.name(), "text": text}


def _done_reply(draw: Draw, values: Values) -> tuple[str, str]:
    return draw.choice(("ok", "done", '{"status": "ok"}', '{"success": true}', "success")), "Done."


def _timer(draw: Draw) -> Values:
    return {"minutes": draw.rng.randint(1, 90)}


def _stock(draw: Draw) -> Values:
    return {
        "symbol": "".join(draw.rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=draw.rng.randint(3, 4)))
    }


def _stock_reply(draw: Draw, values: Values) -> tuple[str, str]:
    price = draw.rng.randint(1, 999)
    shapes = (
        str(price),
        json.dumps({"price": price}),
        json.dumps({"symbol": values["symbol"], "price": price}),
    )
    return draw.choice(shapes), f"The price of {values['symbol']} is {price}."


TOOL_KINDS: tuple[ToolKind, ...] = (
    ToolKind(
        "weather",
        ("get_weather", "get_current_weather", "weather", "fetch_weather", "weather_lookup", "getWeather"),
        ("Get the current weather in a city.", "Current weather for a location", "Look up the weather.",
         "Get the current weather in a given location"),
        (_CITY,),
        ("What is the weather in {city}?", "What's the weather like in {city}?", "How is the weather in {city}?",
         "How warm is it in {city}?", "Is it raining in {city}?", "Tell me the weather in {city}.",
         "What is the temperature in {city}?", "Weather in {city}?", "Do I need an umbrella in {city}?",
         "What is the weather in {city} today?", "Check the weather in {city}.", "Is it cold in {city}?"),
        _city,
        _weather_reply,
    ),
    ToolKind(
        "time",
        ("get_time", "get_current_time", "time_in_city", "clock", "world_clock", "getTime"),
        ("Get the local time in a city.", "Current time for a location", "Tells the time."),
        (_CITY,),
        ("What time is it in {city}?", "What is the time in {city}?", "Tell me the time in {city}.",
         "Time in {city}?", "What is the local time in {city}?", "How late is it in {city}?",
         "What time is it now in {city}?"),
        _city,
        _time_reply,
    ),
    ToolKind(
        "calculator",
        ("calculator", "calculate", "compute", "evaluate", "math", "run_calculation"),
        ("Evaluate an arithmetic expression.", "A calculator.", "Compute the value of an expression"),
        (Parameter("expression", ("expression", "formula", "input", "expr"),
                   ("The expression", "An expression, e.g. 1 + 2", "What to compute")),),
        ("What is {expression}?", "Calculate {expression}.", "Compute {expression}", "How much is {expression}?",
         "Use the calculator: {expression}", "{expression}", "Work out {expression}.", "Evaluate {expression}."),
        _calculation,
        _number_reply,
    ),
    ToolKind(
        "search",
        ("search", "web_search", "search_web", "google", "find_pages", "lookup"),
        ("Search the web.", "Find pages about a query", "Search engine."),
        (Parameter("query", ("query", "q", "text", "search_query", "keywords"), ("The query", "What to search for")),),
        ("Search for {query}.", "Search the web for {query}.", "Look up {query}.", "Find pages about {query}.",
         "Can you search for {query}?", "Google {query}.", "Do a search for {query}."),
        _query,
        _search_reply,
    ),
    ToolKind(
        "translate",
        ("translate", "translate_text", "translator", "get_translation"),
        ("Translate a text.", "Translate text into a language"),
        (Parameter("text", ("text", "phrase", "input", "source_text"), ("The text", "What to translate")),
         Parameter("language", ("language", "target_language", "lang", "to"), ("The language", "Target language"))),
        ("Translate {text} into {language}.", "What is {text} in {language}?", "Translate '{text}' to {language}.",
         "How do you say {text} in {language}?", "Please translate {text} to {language}."),
        _translation,
        _translation_reply,
    ),
    ToolKind(
        "currency",
        ("convert_currency", "currency_converter", "exchange", "convert_money"),
        ("Convert an amount of money.", "Currency conversion"),
        (Parameter("amount", ("amount", "value", "sum"), ("The amount", "How much"), "integer"),
         Parameter("source", ("from_currency", "source", "base"), ("Currency to convert from",)),
         Parameter("target", ("to_currency", "target", "quote"), ("Currency to convert to",))),
        ("Convert {amount} {source} to {target}.", "How much is {amount} {source} in {target}?",
         "What is {amount} {source} in {target}?", "Change {amount} {source} into {target}."),
        _exchange,
        _exchange_reply,
    ),
    ToolKind(
        "message",
        ("send_message", "send_text", "message", "send_email", "notify"),
        ("Send a message to a person.", "Sends a text"),
        (Parameter("name", ("to", "recipient", "person", "name"), ("Who gets it", "The recipient")),
         Parameter("text", ("text", "message", "body", "content"), ("The text", "What to say"))),
        ("Send {name} the message: {text}", "Tell {name}: {text}", "Send a message to {name}: {text}",
         "Write to {name}: {text}", "Text {name}: {text}"),
        _message,
        _done_reply,
    ),
    ToolKind(
        "timer",
        ("set_timer", "start_timer", "timer", "countdown"),
        ("Start a timer.", "Sets a timer in minutes"),
        (Parameter("minutes", ("minutes", "duration", "duration_minutes", "length"), ("Minutes", "How long"), "integer"),),
        ("Set a timer for {minutes} minutes.", "Start a timer of {minutes} minutes.", "Wake me in {minutes} minutes.",
         "Timer for {minutes} minutes, please.", "Remind me in {minutes} minutes."),
        _timer,
        _done_reply,
    ),
    ToolKind(
        "stock",
        ("get_stock_price", "stock_price", "quote", "stock_lookup"),
        ("Get the price of a stock.", "Stock price by symbol"),
        (Parameter("symbol", ("symbol", "ticker", "stock"), ("The symbol", "Ticker symbol, e.g. ABC")),),
        ("What is the price of {symbol}?", "How is {symbol} doing?", "Stock price of {symbol}?",
         "Get the price of {symbol}.", "What does a share of {symbol} cost?"),
        _stock,
        _stock_reply,
    ),
)  # fmt: skip
