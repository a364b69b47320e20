import pytest
import torch

from hpcserve.kernels.norm import reference, shapes
from hpcserve.ops import norm

triton_norm = pytest.importorskip("hpcserve.kernels.norm.rms_norm_triton")

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def naive(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.double()
    return wide / (wide.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight.double()


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_reference_is_the_formula(random, dtype):
    x = torch.randn(2, 3, 40, generator=random).to(dtype)
    weight = torch.randn(40, generator=random).to(dtype)
    expected = naive(x, weight, 1e-5)
    out = norm.rms_norm(x, weight, 1e-5)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=TOLERANCE[dtype], atol=1e-5)


def test_reference_adds_before_the_norm(random):
    x, residual = torch.randn(2, 4, 16, generator=random)
    weight = torch.randn(16, generator=random)
    before = x.clone(), residual.clone()
    normed, total = norm.add_rms_norm(x, residual, weight, 1e-6)
    assert torch.equal(x, before[0]) and torch.equal(residual, before[1])
    torch.testing.assert_close(total, x + residual)
    torch.testing.assert_close(
        normed.double(), naive(x + residual, weight, 1e-6), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", shapes.SMALL)
def test_kernel(random, poisoned, shape, dtype):
    x = torch.randn(shape, generator=random).to(dtype)
    weight = torch.randn(shape[1], generator=random).to(dtype)
    out = triton_norm.rms_norm(x, weight, 1e-5)
    assert out.dtype == dtype and out.shape == x.shape
    torch.testing.assert_close(
        out.double(), naive(x, weight, 1e-5), rtol=TOLERANCE[dtype], atol=1e-5
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", shapes.SMALL)
def test_add_kernel(random, poisoned, shape, dtype):
    x, residual = torch.randn(2, *shape, generator=random).to(dtype)
    weight = torch.randn(shape[1], generator=random).to(dtype)
    normed, total = triton_norm.add_rms_norm(x, residual, weight, 1e-5)
    # Triton's interpreter truncates to bfloat16 where devices round: one unit in the last place.
    rounding = 2**-7 if dtype == torch.bfloat16 else 0.0
    torch.testing.assert_close(total, x + residual, rtol=rounding, atol=0.0)
    torch.testing.assert_close(
        normed.double(), naive(total, weight, 1e-5), rtol=TOLERANCE[dtype], atol=1e-5
    )


def test_kernel_takes_strided_rows_and_more_dimensions(random, poisoned):
    wide = torch.randn(6, 100, generator=random)
    weight = torch.randn(40, generator=random)
    for x in (wide[:, 20:60], wide[::2, :40], wide[:, :80].view(6, 2, 40), wide.t()[:40].t()):
        torch.testing.assert_close(
            triton_norm.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5)
        )


def test_kernel_of_no_rows():
    assert triton_norm.rms_norm(torch.empty(0, 8), torch.ones(8), 1e-5).shape == (0, 8)
