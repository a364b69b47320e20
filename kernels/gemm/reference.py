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
) -> torch.Tensor:
    """x [..., K] @ weight[N, K]^T + bias [N] + residual [..., N]."""
    out = F.linear(x, weight, bias)
    return out if residual is None else out + residual


def gated_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """silu(gate) * up [..., N / 2], where linear(x, weight, bias) holds gate, then up."""
    return silu_and_mul(linear(x, weight, bias))
