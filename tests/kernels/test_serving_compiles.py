"""What a whole server would launch on a Hopper GPU compiles, fits, and compiles before it serves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

#: What a multiprocessor of Hopper has for one program.
MAX_SHARED, REGISTERS = 227 * 1024, 64 * 1024
#: Bytes of stack: a few are no spilled registers to worry about.
MAX_STACK = 64
PATHS = [
    ("tiny-chat", 1),
    ("llama-3.1-70b", 8, "--rank", 7, "--fused"),
    ("qwen3-30b-a3b", 4, "--rank", 2),
]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path[0])
def test_serving_path(path, tmp_path):
    script = Path(__file__).with_name("serve_for_hopper.py")
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "TRITON_INTERPRET": "0",
        "TRITON_DEFAULT_FP_FUSION": "1",
    }
    done = subprocess.run(
        [sys.executable, str(script), *map(str, path)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = [json.loads(line) for line in done.stdout.splitlines()]
    serving = said.index({"phase": "serving"})
    for facts in (*said[:serving], *said[serving + 1 :]):
        assert facts["shared"] <= MAX_SHARED, facts
        assert facts["registers"] * facts["warps"] * 32 <= REGISTERS, facts
        assert facts["stack"] <= MAX_STACK, facts
    at_start = {(facts["kernel"], facts["variant"]) for facts in said[:serving]}
    later = {(facts["kernel"], facts["variant"]) for facts in said[serving + 1 :]}
    assert "_decode_kernel" in {name for name, _ in later}
    assert later - at_start == set()
