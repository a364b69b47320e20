import subprocess
import sys

import pytest
import torch

from hpcserve.distributed.parallel_state import TensorParallel
from hpcserve.errors import ConfigError
from hpcserve.layers.norm import RMSNorm
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


class Comm:
    """Of two ranks with the same parts, whose memory a kernel could read."""

    def all_reduce(self, x):
        return x * 2

    def peers(self, part):
        raise AssertionError("no kernel is to read it")


def test_sums_of_ranks_take_no_kernel_either(monkeypatch):
    monkeypatch.setenv("HPCSERVE_DISABLE_KERNELS", "1")
    norm, part, residual = RMSNorm(8, 1e-6), torch.rand(3, 8), torch.rand(3, 8)
    norm.weight.data = torch.ones(8)
    normed, total = norm.add_sum(part, residual, TensorParallel(0, 2, Comm()))
    torch.testing.assert_close(total, 2 * part + residual)
    torch.testing.assert_close(normed, norm(total))


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
