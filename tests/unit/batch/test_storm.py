"""SIGKILL at random points: nothing lost, nothing double, the same bytes as without."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from hpcserve.batch.run_dir import RunDir
from hpcserve.batch.verify import verify_run

CHILD = Path(__file__).parent / "storm_child.py"
NUM_ROWS = 2000


def _input(folder: Path) -> Path:
    path = folder / "in.jsonl"
    with path.open("w", encoding="utf-8") as stream:
        for number in range(NUM_ROWS):
            text = f"row-{number} " + "wörter " * (number % 23)
            row = {"custom_id": f"id-{number}", "prompt": text}
            stream.write((json.dumps(row) if number % 97 else '{"broken') + "\n")
    return path


@pytest.mark.parametrize("seed", [1, 2])
def test_sigkill_at_random_system_calls(tmp_path: Path, seed: int) -> None:
    source, output, answers = _input(tmp_path), tmp_path / "out.jsonl", tmp_path / "answers"
    answers.touch()
    done = subprocess.run(
        [sys.executable, str(CHILD), str(source), str(output), str(answers), str(seed), "25"],
        capture_output=True,
        text=True,
        timeout=6000,
    )
    assert done.returncode == 0, done.stderr
    attempts = [json.loads(line) for line in done.stdout.splitlines()]
    kills = sum(one.get("signal") == 9 for one in attempts)
    assert kills >= 25

    clean = Path(f"{output}.clean.jsonl").read_bytes()
    assert output.read_bytes() == clean
    assert verify_run(RunDir.of_output(output)).problems == []
    # Each row was answered; more than once only what was in flight, or not yet in the journal.
    counts = Counter(answers.read_text(encoding="utf-8").split())
    assert len(counts) == NUM_ROWS - len(range(0, NUM_ROWS, 97))
    again = sum(counts.values()) - len(counts)
    since = [number for number, one in enumerate(attempts) if one.get("again")]
    kills = sum(one.get("signal") == 9 for one in attempts[(since or [0])[-1] :])
    assert again <= kills * (48 + 4096 // 150)


def test_the_run_directory_is_clean_at_the_end(tmp_path: Path) -> None:
    source, output = _input(tmp_path), tmp_path / "out.jsonl"
    done = subprocess.run(
        [sys.executable, str(CHILD), str(source), str(output), str(tmp_path / "a"), "7", "4"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    run_dir = RunDir.of_output(output)
    assert list(run_dir.journals.iterdir()) == []
    assert [one.name for one in run_dir.leases.iterdir() if one.name.isdigit()] == []
    names = sorted(one.name for one in run_dir.shards.iterdir())
    assert names == [f"{number:06d}" for number in range(10)]
