import pytest
import torch

from hpcserve.kernels.activation import shapes
from hpcserve.ops import activation

triton_activation = pytest.importorskip("hpcserve.kernels.activation.silu_and_mul_triton")

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def naive(gate_up: torch.Tensor) -> torch.Tensor:
    half = gate_up.shape[-1] // 2
    gate, up = gate_up[..., :half].double(), gate_up[..., half:].double()
    return gate / (1 + (-gate).exp()) * up


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", shapes.SMALL)
@pytest.mark.parametrize(
    "run", [activation.silu_and_mul, triton_activation.silu_and_mul], ids=["reference", "triton"]
)
def test_silu_and_mul(random, poisoned, run, shape, dtype):
    gate_up = (4 * torch.randn(shape[0], 2 * shape[1], generator=random)).to(dtype)
    out = run(gate_up)
    assert out.dtype == dtype and out.shape == shape
    torch.testing.assert_close(out.double(), naive(gate_up), rtol=TOLERANCE[dtype], atol=1e-2)


def test_kernel_takes_strided_rows_and_more_dimensions(random, poisoned):
    wide = torch.randn(4, 3, 80, generator=random)
    for x in (wide, wide[:, 1, 8:48], wide.transpose(0, 1)):
        torch.testing.assert_close(
            triton_activation.silu_and_mul(x), activation.silu_and_mul(x), rtol=1e-5, atol=1e-6
        )


def test_kernel_survives_large_values():
    x = torch.tensor([[-200.0, 200.0, 1.0, 1.0]])
    assert triton_activation.silu_and_mul(x).tolist() == [[0.0, 200.0]]
