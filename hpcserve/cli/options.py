"""Options of the config dataclasses as flags of a command, with their help in sections."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from hpcserve.config.declared import Declared, declared_in, parse
from hpcserve.config.engine import EngineConfig
from hpcserve.config.load import Setting, build_engine, resolve
from hpcserve.errors import ConfigError
from hpcserve.log import get_logger

F = TypeVar("F", bound=Callable[..., Any])

_log = get_logger(__name__)
#: Logs are read by more people than the key is meant for.
_SECRETS = frozenset({"api_key"})


class ConfigOption(click.Option):
    """A flag read off a config field; `section` heads it in the help."""

    def __init__(self, declared: Declared, section: str) -> None:
        self.declared = declared
        self.section = section
        kind: dict[str, Any]
        if declared.plain_type is bool:
            kind = {"is_flag": True, "default": None}
        else:
            kind = {"type": _OptionValue(declared), "multiple": declared.is_list}
        super().__init__(_declarations(declared), help=_help(declared), **kind)


class SectionedCommand(click.Command):
    """A command whose help groups its flags: its own first, then each config's."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                section = param.section if isinstance(param, ConfigOption) else "Options"
                sections.setdefault(section, []).append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records, col_max=34)


def config_options(sections: Mapping[str, Sequence[type[Any]]]) -> Callable[[F], F]:
    """A decorator that gives a command the flags of these configs, by section of the help, and
    `--config FILE`."""

    def decorate(function: F) -> F:
        declared = [
            ConfigOption(its_option, section)
            for section, configs in sections.items()
            for its_option in declared_in(configs)
        ]
        # click reads this list backwards, since decorators are applied from the last to the first.
        params: list[click.Parameter] = function.__dict__.setdefault("__click_params__", [])
        params.extend(reversed([_config_file(), *declared]))
        return function

    return decorate


def settings_of(ctx: click.Context, configs: Sequence[type[Any]]) -> dict[str, Setting]:
    """What the command line, environment, config file and defaults give for `configs`."""
    names = {declared.name for declared in declared_in(configs)}
    given = {
        name: value
        for name, value in ctx.params.items()
        if name in names and ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    settings = resolve(configs, given=given, file=ctx.params["config"])
    for name, setting in settings.items():
        if not setting.is_default:
            shown = "..." if name in _SECRETS else repr(setting.value)
            _log.debug("option %s = %s (%s)", name, shown, setting.origin)
    return settings


def engine_config(settings: Mapping[str, Setting], model_argument: str | None) -> EngineConfig:
    """The engine's config; the model may also stand without a flag, as in `vllm serve MODEL`."""
    config = build_engine(settings)
    named = config.model.model
    if not model_argument:
        return config
    if named and settings["model"].origin == "command line":
        raise ConfigError(f"the model is given twice: {model_argument} and --model {named}")
    return config.replace(model=model_argument)


class _OptionValue(click.ParamType[Any]):
    """Parses the text of a flag as its field's type."""

    def __init__(self, declared: Declared) -> None:
        self._declared = declared
        self.name = _TYPE_NAMES[str if declared.is_list else declared.plain_type]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str) or self._declared.is_list:
            return value
        try:
            return parse(self._declared, value)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx=ctx, param=param) from error

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str | None:
        choices = self._declared.option.choices
        if choices:
            return f"[{'|'.join(map(str, choices))}]"
        return self._declared.option.metavar


_TYPE_NAMES: dict[Any, str] = {int: "integer", float: "number", str: "text"}


def _declarations(declared: Declared) -> list[str]:
    """click's spelling: the parameter's name, then `--on/--off` and further spellings."""
    flags = list(declared.option.flags)
    off = list(declared.option.off_flags)
    if not off:
        return [declared.name, *flags]
    paired = [f"{flags[0]}/{off[0]}", *flags[1:], *(f" /{flag}" for flag in off[1:])]
    return [declared.name, *paired]


def _help(declared: Declared) -> str:
    text = declared.option.help
    default = declared.default
    if default is None or default == "" or default == () or declared.plain_type is bool:
        return text
    return f"{text} (default: {default})"


def _config_file() -> click.Option:
    return click.Option(
        ["config", "--config"],
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="YAML file of options by their long names; the command line and the environment "
        "(HPCSERVE_<NAME>) win over it",
    )
