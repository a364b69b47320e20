"""Linear layers in plain torch (cuBLAS on a GPU)."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ..activation.reference import silu_and_mul


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """x [..., K] @ weight[N, K]^T + bias [N] + residual [..., N].  out: memory for it, contiguous."""
    if out is None:
        made = F.linear(x, weight, bias)
        return made if residual is None else made + residual
    rows, flat = x.reshape(-1, x.shape[-1]), out.view(-1, out.shape[-1])
    if bias is None:
        torch.mm(rows, weight.t(), out=flat)
    else:
        torch.addmm(bias, rows, weight.t(), out=flat)
    return out if residual is None else out.add_(residual)


def gated_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """silu(gate) * up [..., N / 2], where linear(x, weight, bias) holds gate, then up."""
    return silu_and_mul(linear(x, weight, bias))
