"""Sampling parameters of the command line as fields of a request's body."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

import msgspec

from hpcserve.config.batch import RowDefaults
from hpcserve.errors import ConfigError


def body_defaults(defaults: RowDefaults, known: frozenset[str]) -> dict[str, Any]:
    """Body fields for rows that do not give them.

    known: names that `--sampling` may set.  Raises ConfigError for another, or for a text without
    `=`. A value is read as JSON where it is JSON, else it is text.
    """
    given = dataclasses.asdict(defaults)
    pairs = given.pop("sampling")
    body = {name: value for name, value in given.items() if value not in (None, ())}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"--sampling {pair}: expected KEY=VALUE")
        if name not in known:
            raise ConfigError(f"--sampling {pair}: {_unknown(name, known)}")
        body[name] = _value(text)
    return body


def _unknown(name: str, known: frozenset[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1)
    if close:
        return f"no parameter {name!r}; did you mean {close[0]!r}?"
    return f"no parameter {name!r}; known: {', '.join(sorted(known))}"


def _value(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text
