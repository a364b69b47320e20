"""Commands of a login node are quick, and import nothing heavy."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

LIGHT = [
    "submit org/m --nodes 2 --tp 16",
    "ps",
    "status 4711",
    "ps --json",
    "presets list --json",
    "cluster show",
    "render submit org/m --nodes 2 --tp 16",
]


@pytest.mark.parametrize("words", LIGHT)
def test_commands_take_less_than_a_second(slurm, words, run):
    run("submit", "org/model")
    slurm.says("squeue", stdout="4711|RUNNING|None|2030-01-01T00:00:00|n1|1|name\n")
    code = (
        "import sys; from hpcserve.cli.main import main\n"
        f"try: main({words.split()!r})\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'pyarrow', 'fastapi'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    # By the processor's clock, and on a slow machine against Python with the same libraries.
    plain = min(seconds_of("import asyncio, json, subprocess, click, yaml") for _ in range(2))
    assert min(seconds_of(code) for _ in range(2)) < max(0.8, 6 * plain)


def seconds_of(code):
    """Of processor time that a Python process takes for `code`."""
    before = os.times()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    after = os.times()
    return (
        after.children_user + after.children_system - before.children_user - before.children_system
    )
