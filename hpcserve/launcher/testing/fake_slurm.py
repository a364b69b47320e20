"""SLURM's commands for tests without a SLURM."""

from __future__ import annotations

import json
from pathlib import Path

_SCRIPT = """#!/usr/bin/env python3
import json, os, sys
with open({calls!r}, "a") as calls:
    calls.write(json.dumps([{name!r}, *sys.argv[1:]]) + chr(10))
with open({env!r}, "w") as env:
    json.dump(dict(os.environ), env)
sys.stdout.write({stdout!r})
sys.stderr.write({stderr!r})
sys.exit({code})
"""

COMMANDS = ("sbatch", "srun", "squeue", "scontrol", "scancel", "sacct", "sinfo")


class FakeSlurm:
    """Commands for the front of PATH: they note how they were called, and print as they are told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self._calls = folder / "calls.jsonl"
        self._env = folder / "env.json"
        for name in COMMANDS:
            self.says(name)

    def says(self, name: str, stdout: str = "", stderr: str = "", code: int = 0) -> None:
        """From now on `name` prints this and exits with `code`."""
        script = self.folder / name
        text = _SCRIPT.format(
            calls=str(self._calls),
            env=str(self._env),
            name=name,
            stdout=stdout,
            stderr=stderr,
            code=code,
        )
        script.write_text(text, encoding="utf-8")
        script.chmod(0o755)

    def lacks(self, name: str) -> None:
        (self.folder / name).unlink()

    def calls(self, name: str) -> list[list[str]]:
        """The words of every call of `name`, in order."""
        if not self._calls.exists():
            return []
        rows = [json.loads(line) for line in self._calls.read_text(encoding="utf-8").splitlines()]
        return [row[1:] for row in rows if row[0] == name]

    def environment(self) -> dict[str, str]:
        """Of the latest call of any command."""
        found: dict[str, str] = json.loads(self._env.read_text(encoding="utf-8"))
        return found
