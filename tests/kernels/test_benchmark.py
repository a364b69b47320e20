"""The benchmark's own code, without a GPU."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
FOLDER = Path(__file__).parents[2] / "benchmarks" / "kernels"


def test_dry_run(tmp_path):
    out = tmp_path / "numbers.json"
    command = [sys.executable, str(FOLDER / "run.py"), "--dry-run", "--out", str(out)]
    done = subprocess.run(
        [*command, "--only", "elementwise", "gemm"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(out.read_text())["results"]
    assert {result["family"] for result in results} >= {"rms_norm", "rope+kv", "expand", "linear"}
    assert all(result["ok"] for result in results)


def test_dry_run_of_the_experts_writes_what_the_kernels_read(tmp_path):
    from hpcserve.kernels.moe import tuned

    table = tmp_path / "tuned.json"
    options = ["--only", "tiny ep", "--tokens", "3", "--write", "--table", str(table)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(FOLDER / "bench_moe.py"), "--dry-run", *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert row["ok"] and 0 < row["distinct_experts"] <= 2
    ((most, found),) = tuned.table_of("dry run", table)[2, 32, 16]
    assert most == row["pairs"] == 6
    assert [list(found.gate_up), list(found.down)] == row["tiles"]


def _tune(script: str, *options: str) -> str:
    command = [sys.executable, "-W", "ignore", str(FOLDER / script), "--dry-run", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_dry_run_of_a_layer(tmp_path):
    out = tmp_path / "layer.json"
    said = _tune("tune_decode_layer.py", "--rows", "1", "--context", "20", "--out", str(out))
    assert said.count("the same bits") == 1 and "DIFFERS" not in said
    chosen = json.loads(out.read_text())["chosen"]["1"]
    assert chosen["gated"] and all(chosen["configs"].values())


def test_dry_run_of_a_rank_writes_what_the_kernels_read(tmp_path, monkeypatch):
    from hpcserve.kernels.gemm import tuned

    out = tmp_path / "tuned.json"
    _tune("tune_rank_layer.py", "--rows", "1", "--out", str(out))
    for name in ("TUNED", "GATED"):
        monkeypatch.setattr(tuned, name, {})
    tuned.add_from(out)
    # Half of 4 heads and 2 kv heads of 16, half of a feed-forward size of 96; a hidden size of 32.
    assert tuned.TUNED["dry run"].keys() == {(1, 64, 32), (1, 32, 32), (1, 32, 48)}
    assert tuned.GATED["dry run"].keys() == {(1, 96, 32)}


@pytest.fixture
def harness(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return pytest.importorskip("harness")


@pytest.mark.parametrize(
    "broken",
    [
        lambda x: x * 1.1,
        lambda x: torch.empty_like(x),
        lambda x: x.double(),
        lambda x: x[:2],
        lambda x: (x, x),
    ],
    ids=["values", "unwritten", "dtype", "shape", "outputs"],
)
def test_check_sees_wrong_results(harness, broken):
    def make(seed: int) -> tuple[torch.Tensor]:
        return (torch.randn(4, generator=torch.Generator().manual_seed(seed)),)

    case = harness.Case("f", "n", make, broken, lambda x: x.clone())
    assert not harness.check(case) <= case.tolerance
    assert not harness.run_case(case, dry_run=True).ok
    good = harness.Case("f", "n", make, lambda x: x.clone(), lambda x: x.clone())
    assert harness.run_case(good, dry_run=True).ok


def test_failing_kernel_is_a_failed_row(harness):
    def fail(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of shared memory")

    case = harness.Case("f", "n", lambda seed: (torch.zeros(1),), fail, lambda x: x)
    result = harness.run_case(case, dry_run=True)
    assert not result.ok and math.isinf(result.error) and "shared memory" in result.note
