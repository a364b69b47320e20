"""One declaration per option: default, flags, help and choices stand at the dataclass field.

The command line, YAML files, environment and `LLM(...)` keywords are all read off these
declarations, so an option cannot exist in one of them only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_KEY = "option"


@dataclass(frozen=True)
class Option:
    """What faces need to know about a field.

    flags: spellings that set it; the first is the one shown. Both dialects' names stand here.
    off_flags: for a bool, spellings that set it to False.
    """

    flags: tuple[str, ...]
    off_flags: tuple[str, ...]
    help: str
    choices: tuple[Any, ...]
    metavar: str | None


def option(
    default: Any,
    *flags: str,
    help: str,
    off_flags: Sequence[str] = (),
    choices: Sequence[Any] = (),
    metavar: str | None = None,
) -> Any:
    """A dataclass field that is also an option."""
    declared = Option(flags, tuple(off_flags), help, tuple(choices), metavar)
    return dataclasses.field(default=default, metadata={_KEY: declared})


def options_of(config: type[Any]) -> Iterator[tuple[dataclasses.Field[Any], Option]]:
    """Fields of a dataclass that opted in, with their declarations, in order."""
    for field in dataclasses.fields(config):
        if _KEY in field.metadata:
            yield field, field.metadata[_KEY]


def keyword_names(field: dataclasses.Field[Any], declared: Option) -> list[str]:
    """Every keyword that means this field: its own name and each flag's, with underscores."""
    spelled = [flag.lstrip("-").replace("-", "_") for flag in declared.flags]
    return list(dict.fromkeys([field.name, *spelled]))


def off_names(declared: Option) -> list[str]:
    """Every keyword that, when true, means the field is False: `disable_radix_cache`."""
    return [flag.lstrip("-").replace("-", "_") for flag in declared.off_flags]
