import subprocess
import sys

import pytest
import torch

from hpcserve.errors import ConfigError
from hpcserve.ops import _dispatch


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    _dispatch.kernels_enabled.cache_clear()
    yield
    _dispatch.kernels_enabled.cache_clear()


def test_cpu_tensors_take_the_reference():
    assert not _dispatch.use_kernel(torch.empty(1))


def test_environment_turns_kernels_off(monkeypatch):
    monkeypatch.setenv("HPCSERVE_DISABLE_KERNELS", "1")
    assert not _dispatch.kernels_enabled()


def test_bad_environment_is_an_error(monkeypatch):
    monkeypatch.setenv("HPCSERVE_DISABLE_KERNELS", "maybe")
    monkeypatch.setattr(_dispatch, "find_spec", lambda name: object())
    with pytest.raises(ConfigError, match="HPCSERVE_DISABLE_KERNELS"):
        _dispatch.kernels_enabled()


def test_missing_triton_turns_kernels_off(monkeypatch):
    monkeypatch.setattr(_dispatch, "find_spec", lambda name: None)
    assert not _dispatch.kernels_enabled()


def test_ops_do_not_import_triton():
    """Only a CUDA tensor makes the project import Triton."""
    names = "norm rope kv_store activation embedding gemm paged_attention sampling metadata"
    code = "import sys\n" + "".join(f"import hpcserve.ops.{name}\n" for name in names.split())
    code += "sys.exit('triton.compiler' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
