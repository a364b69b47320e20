"""RMSNorm, alone and after adding the residual."""

from __future__ import annotations

import torch

from hpcserve.kernels.norm import reference
from hpcserve.ops._dispatch import kernel, use_kernel


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm over the last dimension of x [..., H] with weight [H]; fp32 inside, x's dtype out."""
    if use_kernel(x):
        out: torch.Tensor = kernel("norm.rms_norm_triton").rms_norm(x, weight, eps)
        return out
    return reference.rms_norm(x, weight, eps)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(normed, new_residual): new_residual = x + residual, normed = rms_norm(new_residual).

    x, residual: [..., H] of one dtype; neither is changed.
    """
    if use_kernel(x):
        normed, total = kernel("norm.rms_norm_triton").add_rms_norm(x, residual, weight, eps)
        return normed, total
    return reference.add_rms_norm(x, residual, weight, eps)
