import pytest
import torch
from torch.nn import functional as F

from hpcserve.kernels.gemm import shapes
from hpcserve.kernels.gemm.tuned import GATED, TUNED
from hpcserve.ops import gemm

small_m = pytest.importorskip("hpcserve.kernels.gemm.small_m_triton")

# The interpreter has no bfloat16 matrix product; the benchmark checks that type on a device.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3}


def make(random, rows, size_n, size_k, dtype):
    x = torch.randn(rows, size_k, generator=random).to(dtype)
    weight = (torch.randn(size_n, size_k, generator=random) / size_k**0.5).to(dtype)
    bias = torch.randn(size_n, generator=random).to(dtype)
    residual = torch.randn(rows, size_n, generator=random).to(dtype)
    return x, weight, bias, residual


@pytest.mark.parametrize("extras", [False, True], ids=["plain", "bias+residual"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("rows", "size_n", "size_k", "config"), shapes.SMALL)
def test_linear(random, poisoned, monkeypatch, rows, size_n, size_k, config, dtype, extras):
    x, weight, bias, residual = make(random, rows, size_n, size_k, dtype)
    expected = x.double() @ weight.double().t()
    bias, residual = (bias, residual) if extras else (None, None)
    if extras:
        expected += bias.double() + residual.double()
    assert small_m.fits(config, size_n, size_k)
    outputs = [gemm.linear(x, weight, bias, residual)]
    small_m._counters(x.device)[:] = 0
    # Twice: the counters of split-K must be left as they were found.
    outputs += [small_m.linear(x, weight, bias, residual, config) for _ in range(2)]
    assert torch.equal(outputs[1], outputs[2])
    for out in outputs:
        assert out.dtype == dtype
        torch.testing.assert_close(
            out.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
        )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("rows", "size_n", "size_k", "config"), shapes.SMALL)
def test_gated_linear(random, poisoned, rows, size_n, size_k, config, dtype):
    x, weight, bias, _ = make(random, rows, size_n, size_k, dtype)
    gate, up = (x.double() @ weight.double().t() + bias.double()).chunk(2, dim=-1)
    expected = F.silu(gate) * up
    small_m._counters(x.device)[:] = 0
    for out in (
        gemm.gated_linear(x, weight, bias),
        small_m.linear(x, weight, bias, None, config, gates=True),
    ):
        assert out.dtype == dtype
        torch.testing.assert_close(
            out.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
        )


def test_strided_rows_and_more_dimensions(random, poisoned):
    x, weight, _, residual = make(random, 4, 64, 64, torch.float32)
    wide = torch.randn(4, 100, generator=random)
    wide[:, :64] = x
    out = small_m.linear(
        wide[:, :64].unsqueeze(1), weight, None, residual.unsqueeze(1), (32, 32, 2, 4, 2)
    )
    assert out.shape == (4, 1, 64)
    torch.testing.assert_close(out.squeeze(1), x @ weight.t() + residual, rtol=2e-5, atol=2e-5)


def test_residual_of_other_strides(random, poisoned):
    x, weight, _, residual = make(random, 17, 64, 64, torch.float32)
    turned = residual.t().contiguous().t()
    out = small_m.linear(x, weight, None, turned, (32, 32, 1, 4, 2))
    torch.testing.assert_close(out, x @ weight.t() + residual, rtol=2e-5, atol=2e-5)


def test_table_is_asked_by_shape(random, monkeypatch):
    config = (16, 32, 2, 4, 2)
    tables = {False: {(4, 64, 64): config}, True: {}}
    monkeypatch.setattr(small_m, "_device_table", lambda device, gates: tables[gates])
    weight = torch.empty(64, 64, dtype=torch.float16)
    x = torch.empty(16, 64, dtype=torch.float16)
    assert small_m.tuned_config(x[:3], weight) == config
    assert small_m.tuned_config(x[:4].view(2, 2, 64), weight) == config
    assert small_m.tuned_config(x[:5], weight) is None
    assert small_m.tuned_config(x[:4].float(), weight) is None
    assert small_m.tuned_config(x[:4], weight[:32]) is None
    assert small_m.tuned_config(x[:4], weight, gates=True) is None


def test_shipped_table_fits_its_shapes():
    for table in (*TUNED.values(), *GATED.values()):
        for (rows, size_n, size_k), config in table.items():
            assert rows in (1, 2, 4, 8, 16, 32, 64)
            assert small_m.fits(config, size_n, size_k)
    every = small_m.CANDIDATES + small_m.WIDE_CANDIDATES
    assert all(len(config) == 5 for config in every)
    assert gemm.MAX_ROWS == small_m.MAX_ROWS
