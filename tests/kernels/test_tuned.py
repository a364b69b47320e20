"""Tables of tuned configurations: what the tuner writes is what the kernels read."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from hpcserve.kernels.gemm import tuned

BENCHMARKS = Path(__file__).parents[2] / "benchmarks" / "kernels"


@pytest.fixture(scope="module")
def tuner():
    pytest.importorskip("triton")
    sys.path.insert(0, str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("tune", BENCHMARKS / "tune_rank_layer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(BENCHMARKS))


def test_slices_of_a_70b_model(tuner):
    assert tuner.rank_shape("llama-3.1-70b", 4).sizes == {
        "qkv": (2560, 8192),
        "o": (8192, 2048),
        "gate_up": (14336, 8192),
        "down": (8192, 7168),
    }
    assert tuner.rank_shape("llama-3.1-70b", 8).kv_heads == 1


def test_what_is_written_is_read_on_top_of_what_was_there(tuner, tmp_path, monkeypatch):
    monkeypatch.setattr(tuned, "TUNED", {"GPU": {(1, 8, 8): (9, 9, 9, 9, 9)}})
    monkeypatch.setattr(tuned, "GATED", {})
    path, shape = tmp_path / "tuned.json", tuner.rank_shape("llama-3.1-70b", 4)
    config, other = (64, 256, 2, 4, 4), (64, 128, 1, 4, 5)
    setting = tuner.Setting({"qkv": config, "gate_up": config, "down": None}, gated=True)
    tuner.write(path, "GPU", tuner.entries(shape, 4, setting))
    tuner.write(path, "Other", tuner.entries(shape, 1, setting))
    tuner.write(path, "GPU", {"linear": {(4, 2560, 8192): other}, "gated": {}})
    tuned.add_from(path)
    assert {
        "GPU": {(1, 8, 8): (9, 9, 9, 9, 9), (4, 2560, 8192): other},
        "Other": {(1, 2560, 8192): config},
    } == tuned.TUNED
    assert {"GPU": {(4, 14336, 8192): config}, "Other": {(1, 14336, 8192): config}} == tuned.GATED
    assert json.loads(path.read_text())["GPU"]["gated"] == [[[4, 14336, 8192], list(config)]]
