"""The `hpcserve` command: finds the verb, and turns errors into one line and an exit code."""

from __future__ import annotations

import difflib
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import click
from click.exceptions import NoArgsIsHelpError

from hpcserve import envs, registry
from hpcserve._version import __version__
from hpcserve.errors import HpcserveError

_PACKAGE = "hpcserve.cli"
# Modules of this package that are no verbs.
_PLUMBING = frozenset({"main", "options"})

EXIT_INTERRUPTED = 130


class VerbGroup(click.Group):
    """One verb is one module of `hpcserve/cli` with a click command named `command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in registry.names(_PACKAGE) if name not in _PLUMBING]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command = registry.load(_PACKAGE, cmd_name).command
        if not isinstance(command, click.Command):
            raise TypeError(f"{_PACKAGE}.{cmd_name}.command is no click command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in self.list_commands(ctx):
            ctx.fail(_unknown_verb(args[0], self.list_commands(ctx)))
        return super().resolve_command(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The environment, which belongs to no single command."""
        listed = [(variable.name, variable.help) for variable in envs.all_variables()]
        any_option = ("HPCSERVE_<NAME>", "any option by its long name, as HPCSERVE_MAX_MODEL_LEN")
        with formatter.section("Environment"):
            formatter.write_dl([*listed, any_option])

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """click's own `main`, but for how an error is shown."""
        run: Callable[..., Any] = super().main
        if not standalone_mode:
            return run(*args, standalone_mode=False, **extra)
        try:
            sys.exit(run(*args, standalone_mode=False, **extra) or 0)
        except click.Abort:
            _fail("interrupted", EXIT_INTERRUPTED)
        except NoArgsIsHelpError as error:
            click.echo(error.format_message(), err=True)
            sys.exit(error.exit_code)
        except click.UsageError as error:
            _fail(_usage_text(error), error.exit_code)
        except click.ClickException as error:
            _fail(error.format_message(), error.exit_code)
        except HpcserveError as error:
            if _wants_traceback():
                traceback.print_exc()
            _fail(str(error), error.exit_code)


@click.command(
    cls=VerbGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, "-V", "--version", prog_name="hpcserve")
def main() -> None:
    """LLM inference on SLURM clusters: serve a model over HTTP, or stream files through it."""


def _unknown_verb(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"no command {name!r}; did you mean {close[0]!r}?"
    return f"no command {name!r}; there are: {', '.join(known)}"


def _usage_text(error: click.UsageError) -> str:
    """click's message on one line, and where to read more."""
    text = " ".join(error.format_message().split()).rstrip(".")
    if error.ctx is None:
        return text
    return f"{text} (see `{error.ctx.command_path} --help`)"


def _wants_traceback() -> bool:
    return os.environ.get(envs.HPCSERVE_LOG_LEVEL.name, "").upper() == "DEBUG"


def _fail(message: str, code: int) -> NoReturn:
    click.secho(f"error: {message}", fg="red", err=True)
    sys.exit(code)
