"""Where a setting comes from: command line, then environment, then YAML file, then its default.

Each setting remembers its origin, so that an error about its value can say where it was written.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from hpcserve.config.declared import Declared, convert, declared_in
from hpcserve.config.engine import PARTS, EngineConfig, unknown_option
from hpcserve.config.option import options_of
from hpcserve.errors import ConfigError

T = TypeVar("T")

#: The configs that make up an EngineConfig.
ENGINE_CONFIGS: tuple[type[Any], ...] = tuple(PARTS.values())


@dataclass(frozen=True)
class Setting:
    """A value and where it was written: "command line", a variable, a file, or "default"."""

    value: Any
    origin: str

    @property
    def is_default(self) -> bool:
        return self.origin == "default"


def resolve(
    configs: Sequence[type[Any]],
    *,
    given: Mapping[str, Any],
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> dict[str, Setting]:
    """Field name -> Setting, for every option of `configs`.

    given: what the command line set, by field name.
    environ: HPCSERVE_<NAME> for any long name of an option; an empty one counts as not set.
    file: a YAML mapping of options, by any of their names in either dialect, with - or _.
    Raises ConfigError for an unknown key, a value of the wrong type, or an unreadable file.
    """
    environ = os.environ if environ is None else environ
    options = list(declared_in(configs))
    from_file = _read_file(file, options) if file else {}
    settings: dict[str, Setting] = {}
    for declared in options:
        if declared.name in given:
            settings[declared.name] = Setting(given[declared.name], "command line")
        elif (found := _from_environment(declared, environ)) is not None:
            settings[declared.name] = found
        elif declared.name in from_file:
            settings[declared.name] = from_file[declared.name]
        else:
            settings[declared.name] = Setting(declared.default, "default")
    return settings


def build(config: type[T], settings: Mapping[str, Setting]) -> T:
    """The dataclass `config` with these settings; its own checks name the origin of what they
    refuse."""
    names = [field.name for field, _ in options_of(config)]
    values = {name: settings[name].value for name in names}
    try:
        return config(**values)
    except ConfigError as error:
        raise ConfigError(f"{error}{_origins(str(error), names, settings)}") from error


def build_engine(settings: Mapping[str, Setting]) -> EngineConfig:
    """The EngineConfig with these settings."""
    return EngineConfig(**{part: build(config, settings) for part, config in PARTS.items()})


def _from_environment(declared: Declared, environ: Mapping[str, str]) -> Setting | None:
    found: Setting | None = None
    for variable, is_opposite in declared.variables.items():
        if not environ.get(variable):
            continue
        origin = f"environment variable {variable}"
        value = convert(declared, environ[variable], origin)
        one = Setting(not value if is_opposite else value, origin)
        if found is not None and found.value != one.value:
            raise ConfigError(f"{declared.name}: {found.origin} and {one.origin} differ")
        found = found or one
    return found


def _read_file(path: Path, options: Sequence[Declared]) -> dict[str, Setting]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the config file {path}: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no mapping of options, but {type(content).__name__}")
    return _from_file(path, content, options)


def _from_file(
    path: Path, content: Mapping[Any, Any], options: Sequence[Declared]
) -> dict[str, Setting]:
    on = {name: declared for declared in options for name in declared.keywords}
    off = {name: declared for declared in options for name in declared.off_keywords}
    found: dict[str, Setting] = {}
    for key, value in content.items():
        name = str(key).lstrip("-").replace("-", "_")
        declared = on.get(name) or off.get(name)
        if declared is None:
            raise ConfigError(f"{path}: {unknown_option(str(key), [*on, *off])}")
        converted = convert(declared, value, str(path))
        if name in off:
            converted = not converted
        if declared.name in found and found[declared.name].value != converted:
            raise ConfigError(f"{path} gives {declared.name} twice, with different values")
        found[declared.name] = Setting(converted, str(path))
    return found


def _origins(message: str, names: Sequence[str], settings: Mapping[str, Setting]) -> str:
    """Where the options that `message` speaks of were written, unless on the command line."""
    spoken = [settings[name].origin for name in names if name in message]
    elsewhere = sorted({text for text in spoken if text not in ("command line", "default")})
    return f" (from {', '.join(elsewhere)})" if elsewhere else ""
