"""Linear layers in plain torch (cuBLAS on a GPU)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional as F

from ..activation.reference import silu_and_mul


class DeferredNorm(NamedTuple):
    """RMSNorm of rows whose division is left to the linear layer that reads them.

    scaled [..., H]: the rows times the norm's weight.  squares [parts, at least rows], float32:
    sums of the rows' squares over parts of H, to be added up.
    """

    scaled: torch.Tensor
    squares: torch.Tensor
    eps: float

    def normed(self) -> torch.Tensor:
        """The norm itself, [..., H]."""
        size = self.scaled.shape[-1]
        rows = self.scaled.float().reshape(-1, size)
        mean = self.squares.sum(0)[: len(rows), None] / size
        return (rows * torch.rsqrt(mean + self.eps)).to(self.scaled.dtype).view_as(self.scaled)


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


def linear_add_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor,
    gain: torch.Tensor,
    eps: float,
) -> tuple[DeferredNorm, torch.Tensor]:
    """(RMSNorm with weight `gain` of total, total), total = linear(x, weight, bias, residual)."""
    total = linear(x, weight, bias, residual)
    squares = total.float().square().sum(-1).reshape(1, -1)
    return DeferredNorm((total.float() * gain.float()).to(total.dtype), squares, eps), total
