"""A mixture of experts that replicas share is the same whichever way tokens reach the experts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpcserve import registry
from hpcserve.config.parallel import MOE_DISPATCHES


@pytest.mark.parametrize(
    ("dispatch", "dp", "tp", "ep"),
    [
        ("allgather", 2, 1, 2),
        ("allgather", 2, 2, 4),
        ("alltoall", 2, 1, 2),
        ("alltoall", 2, 2, 4),
        ("alltoall", 4, 1, 2),
    ],
)
def test_every_replica_gets_what_one_process_makes(tmp_path, dispatch, dp, tp, ep):
    """Also where a replica has no token, and where all tokens take the same experts."""
    program = Path(__file__).with_name("dispatch_ranks.py")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(program), dispatch, *map(str, (dp, tp, ep)), tmp_path],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_choices_are_the_modules():
    assert list(MOE_DISPATCHES) == registry.names("hpcserve.layers.expert_dispatch")


def test_the_benchmark_finds_them_equal(tmp_path):
    """Without a GPU its shapes are tiny and its times mean nothing."""
    root = Path(__file__).parents[2]
    out = tmp_path / "dispatch.json"
    program = [sys.executable, str(root / "benchmarks" / "parallel_check.py"), "dispatch"]
    options = ["--gpus", "2", "--device", "cpu", "--tokens", "1", "3", "--out", str(out)]
    done = subprocess.run(
        [*program, *options],
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(out.read_text())
    assert rows == json.loads(done.stdout.splitlines()[-1])
    assert [(row["tokens"], row["equal"], row["of"]) for row in rows] == [(1, 8, 8), (3, 8, 8)]
    assert all(row["alltoall_us"] > 0 and row["allgather_us"] > 0 for row in rows)
