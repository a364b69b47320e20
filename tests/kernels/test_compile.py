"""The compiler refuses some of what the interpreter runs, so compile for sm_90 as well."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

#: Shared memory that one program may have on Hopper.
MAX_SHARED = 227 * 1024
COUNTS = {"rows": 12, "sampling": 11, "products": 9, "ranks": 7, "experts": 12}


def compiled(family, tmp_path):
    """Facts of every launch of a family."""
    root = Path(__file__).parents[2]
    environment = os.environ | {
        "PYTHONPATH": str(root),
        "TRITON_INTERPRET": "0",
        "TRITON_DEFAULT_FP_FUSION": "1",
    }
    script = Path(__file__).with_name("compile_for_hopper.py")
    done = subprocess.run(
        [sys.executable, str(script), family],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("family", COUNTS)
def test_kernels_compile_for_hopper(family, tmp_path):
    kernels = compiled(family, tmp_path)
    assert len(kernels) == COUNTS[family]
    assert all(kernel["shared"] <= MAX_SHARED for kernel in kernels)
    if family == "products":
        assert all(k["tensor_cores"] and k["asynchronous_copies"] for k in kernels)


def test_steps_that_differ_compile_nothing_anew(tmp_path):
    """A new variant takes a tenth of a second and more, while every running request waits."""
    variants = {(kernel["kernel"], kernel["variant"]) for kernel in compiled("steps", tmp_path)}
    assert sorted(name for name, _ in variants) == [
        "_expand_kernel",
        "_page_index_kernel",
        "_write_pages_kernel",
    ]
