"""Linear layers: cuBLAS, or the own kernel for few rows where a measured table says it is faster."""

from __future__ import annotations

import torch

from hpcserve.kernels.gemm import reference
from hpcserve.ops._dispatch import kernel, use_kernel
from hpcserve.ops.activation import silu_and_mul

#: More rows than this always go to cuBLAS; checked here to keep the common path to one branch.
MAX_ROWS = 64


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """x [..., K] @ weight [N, K]^T + bias [N] + residual [..., N]; accumulated in fp32.

    out: contiguous memory for the result.
    """
    if x.numel() <= MAX_ROWS * x.shape[-1] and use_kernel(x):
        module = kernel("gemm.small_m_triton")
        config = module.tuned_config(x, weight)
        if config is not None:
            made: torch.Tensor = module.linear(x, weight, bias, residual, config, out=out)
            return made
    return reference.linear(x, weight, bias, residual, out)


def gated_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """silu(gate) * up [..., N / 2] for x [..., K], where weight [N, K] holds gate, then up."""
    if x.numel() <= MAX_ROWS * x.shape[-1] and use_kernel(x):
        module = kernel("gemm.small_m_triton")
        config = module.tuned_config(x, weight, gates=True)
        if config is not None:
            out: torch.Tensor = module.linear(x, weight, bias, None, config, gates=True)
            return out
    return silu_and_mul(linear(x, weight, bias))
