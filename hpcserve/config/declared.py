"""The options of the config dataclasses with their Python types, and values that fit them."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from hpcserve.config.option import Option, keyword_names, off_names, options_of
from hpcserve.errors import ConfigError

ENVIRONMENT_PREFIX = "HPCSERVE_"


@dataclass(frozen=True)
class Declared:
    """One option of one config: `name` is its field, `type` its Python type."""

    name: str
    type: Any
    default: Any
    option: Option
    keywords: tuple[str, ...]

    @property
    def off_keywords(self) -> tuple[str, ...]:
        """Names that mean the opposite, such as disable_radix_cache."""
        return tuple(off_names(self.option))

    @property
    def is_list(self) -> bool:
        return typing.get_origin(self.type) is tuple

    @property
    def plain_type(self) -> Any:
        """Without None: `int | None` is int."""
        return next((t for t in typing.get_args(self.type) if t is not type(None)), self.type)

    @property
    def variables(self) -> dict[str, bool]:
        """Environment variables that set it: all of its long names; True where one means the
        opposite."""
        on = {_variable(keyword): False for keyword in self.keywords if len(keyword) > 2}
        return on | {_variable(keyword): True for keyword in self.off_keywords}


def _variable(keyword: str) -> str:
    return ENVIRONMENT_PREFIX + keyword.upper()


def declared_in(configs: Sequence[type[Any]]) -> Iterator[Declared]:
    """Every option of these dataclasses, in order."""
    for config in configs:
        if config not in _DECLARED:
            _DECLARED[config] = _read_declarations(config)
        yield from _DECLARED[config]


#: Reading the types of a dataclass takes a while, and several commands share them.
_DECLARED: dict[type[Any], tuple[Declared, ...]] = {}


def _read_declarations(config: type[Any]) -> tuple[Declared, ...]:
    types = typing.get_type_hints(config)
    return tuple(
        Declared(
            field.name,
            types[field.name],
            field.default,
            its_option,
            tuple(keyword_names(field, its_option)),
        )
        for field, its_option in options_of(config)
    )


def convert(declared: Declared, value: Any, origin: str) -> Any:
    """`value` as the option's type; a ConfigError about it names the option and the origin."""
    try:
        return parse(declared, value)
    except ValueError as error:
        raise ConfigError(f"{declared.name} ({origin}): {error}") from None


def parse(declared: Declared, value: Any) -> Any:
    """`value` as the option's type, parsed where it is text; else ValueError says what fits."""
    if declared.is_list and isinstance(value, str):
        value = [value]
    try:
        parsed = msgspec.convert(value, declared.type, strict=not isinstance(value, str))
    except msgspec.ValidationError:
        raise ValueError(f"expected {_describe(declared)}, not {value!r}") from None
    choices = declared.option.choices
    if choices and parsed not in choices:
        raise ValueError(f"{value!r} is not one of {', '.join(map(str, choices))}")
    return parsed


def _describe(declared: Declared) -> str:
    """What a user calls its type: `int | None` is a whole number."""
    if declared.is_list:
        return "a list of texts"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return names[declared.plain_type]
