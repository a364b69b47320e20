"""What the documents say is there, is there: paths, commands and flags."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from hpcserve.cli.main import main

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_TOP = "hpcserve|kernels|sbatch|tests|benchmarks|configs|docs|examples"
_PATH = re.compile(rf"(?<![\w/.-])(?:{_TOP})/[\w./-]+")
#: In running text, `engine/client.py` is short for hpcserve/engine/client.py.
_SHORT = re.compile(r"`([a-z_]+/[\w/]+\.py)`")
_INLINE = re.compile(r"`(hpcserve [^`]+)`")


def _paths(text: str) -> set[str]:
    return {found.rstrip(".") for found in [*_PATH.findall(text), *_SHORT.findall(text)]}


def _exists(path: str) -> bool:
    return (ROOT / path).exists() or (ROOT / "hpcserve" / path).exists()


def _commands(text: str) -> Iterator[str]:
    """Calls of `hpcserve`, in code blocks and in running text."""
    joined = text.replace("\\\n", " ")
    for block in re.findall(r"```(?:bash|sh|console|shell)?\n(.*?)```", joined, re.DOTALL):
        for line in block.splitlines():
            found = re.search(r"(?:^|[$;&|] *|\bsrun .*?)(hpcserve .*)", line.strip())
            if found:
                yield re.split(r" [|>&#;]", found[1])[0]
    yield from _INLINE.findall(joined)


def _unknown(command: str) -> list[str]:
    """Words of a call that hpcserve does not know: its verb, or flags."""
    words = shlex.split(command)[1:]
    if "--" in words:  # what follows is for another command
        words = words[: words.index("--")]
    ctx = click.Context(main, **main.context_settings)
    names = [word for word in words[:1] if not word.startswith("-")]
    verb = main.get_command(ctx, names[0]) if names else main
    if verb is None:
        return names
    inner = getattr(verb, "verbs", {})
    if len(words) > 1 and words[1] in inner:
        verb = inner[words[1]]
    flags = {flag for param in verb.get_params(ctx) for flag in param.opts + param.secondary_opts}
    used = [word.split("=")[0] for word in words if re.match(r"-{1,2}[a-zA-Z]", word)]
    return [flag for flag in used if flag not in flags]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_path_exists(document: Path) -> None:
    missing = {path for path in _paths(document.read_text(encoding="utf-8")) if not _exists(path)}
    # What a run makes need not be there before it.
    assert {path for path in missing if "output" not in path} == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_and_flag_exists(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    unknown = {command: words for command in _commands(text) if (words := _unknown(command))}
    assert unknown == {}


def test_the_checks_can_fail() -> None:
    text = "see `engine/nowhere.py` and docs/none.md\n```bash\nhpcserve srve --port 1\n```\n"
    assert {path for path in _paths(text) if not _exists(path)} == {
        "engine/nowhere.py",
        "docs/none.md",
    }
    assert [_unknown(command) for command in _commands(text)] == [["srve"]]
    assert _unknown("hpcserve serve --prot 3 --tp 2") == ["--prot"]
    assert _unknown("hpcserve batch show out.jsonl --input in.jsonl -n 3 -x") == ["-x"]
    assert _unknown("hpcserve --version") == []
