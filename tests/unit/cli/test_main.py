from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from hpcserve import __version__, envs
from hpcserve.cli import main as main_module
from hpcserve.cli.main import main
from hpcserve.errors import ModelNotFoundError

GOLDEN = Path(__file__).parent / "flags.txt"


def _flags() -> str:
    """Every flag of every command: a change here is a change of what users may type."""
    ctx = click.Context(main, **main.context_settings)
    lines = []
    for name in main.list_commands(ctx):
        command = main.get_command(ctx, name)
        assert command is not None
        verbs = {name: command} | {
            f"{name} {verb}": inner for verb, inner in getattr(command, "verbs", {}).items()
        }
        for title, verb in verbs.items():
            for param in verb.get_params(ctx):
                spelled = ", ".join([*param.opts, *param.secondary_opts])
                lines.append(f"{title}: {spelled}")
    return "\n".join(lines) + "\n"


def test_flags_are_those_on_record() -> None:
    """To accept a change: python tests/unit/cli/test_main.py"""
    assert _flags() == GOLDEN.read_text(encoding="utf-8")


def test_version() -> None:
    result = CliRunner().invoke(main, ["--version"])
    assert result.output.strip() == f"hpcserve, version {__version__}"


@pytest.mark.parametrize(
    "args", [["--help"], ["serve", "-h"], ["batch", "--help"], ["batch", "show", "-h"]]
)
def test_help(args: list[str]) -> None:
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_help_names_the_environment() -> None:
    text = CliRunner().invoke(main, ["--help"]).output
    for variable in envs.all_variables():
        assert variable.name in text


def test_help_shows_sections_defaults_and_choices() -> None:
    text = " ".join(CliRunner().invoke(main, ["serve", "--help"]).output.split())
    assert "Server:" in text
    assert "Engine:" in text
    assert "(default: 30000)" in text
    assert "[1|16|64]" in text
    assert "--max-model-len" in text
    assert "--context-length" in text
    assert "--disable-radix-cache" in text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["srve"], "no command 'srve'; did you mean 'serve'?"),
        (["xyzzy"], "there are: batch, "),
        (["serve", "--prot", "1"], "--port"),
        (["serve", "--port", "x"], "expected a whole number, not 'x'"),
        (["serve", "--page-size", "3"], "'3' is not one of 1, 16, 64"),
        (["serve", "--tp", "0"], "tp_size is 0"),
        (["serve", "--port", "70000"], "port is 70000"),
        (["serve", "--config", "/none.yaml"], "/none.yaml"),
        (["serve", "a", "--model", "b"], "the model is given twice"),
        (["batch"], "no INPUT"),
        (["batch", "in.jsonl"], "no output"),
        (["batch", "a", "-i", "b", "-o", "c"], "given twice"),
        (["batch", "show", "/none.jsonl"], "/none.jsonl"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(args: list[str], message: str) -> None:
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def _failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    @click.command()
    def command() -> None:
        raise error

    monkeypatch.setattr(main_module.VerbGroup, "get_command", lambda self, ctx, name: command)


def test_an_error_of_the_tree_gives_its_exit_code_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _failing(monkeypatch, ModelNotFoundError("there is no model folder x"))
    result = CliRunner().invoke(main, ["serve"])
    assert (result.exit_code, result.stderr) == (2, "error: there is no model folder x\n")


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    _failing(monkeypatch, ModelNotFoundError("there is no model folder x"))
    monkeypatch.setenv("HPCSERVE_LOG_LEVEL", "DEBUG")
    result = CliRunner().invoke(main, ["serve"])
    assert "Traceback" in result.stderr


def test_debug_does_not_show_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPCSERVE_LOG_LEVEL", "DEBUG")
    monkeypatch.setenv("HPCSERVE_API_KEY", "secret")
    result = CliRunner().invoke(main, ["serve", "--tp", "0"])
    assert "option api_key = ... (environment variable HPCSERVE_API_KEY)" in result.stderr
    assert "option tp_size = 0 (command line)" in result.stderr
    assert "secret" not in result.stderr


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    _failing(monkeypatch, KeyboardInterrupt())
    result = CliRunner().invoke(main, ["serve"])
    assert result.exit_code == 130
    assert "interrupted" in result.stderr


def test_a_defect_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    _failing(monkeypatch, ZeroDivisionError("a defect"))
    assert isinstance(CliRunner().invoke(main, ["serve"]).exception, ZeroDivisionError)


def test_a_reader_that_leaves_is_met_in_silence() -> None:
    code = "from hpcserve.cli.main import main; main(['serve', '--help'])"
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout and process.stderr
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), errors) == (1, b"")


if __name__ == "__main__":
    GOLDEN.write_text(_flags(), encoding="utf-8")
