"""Collectives that are fused with what follows them, in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..norm.reference import rms_norm


def sum_add_rms_norm(
    parts: Sequence[torch.Tensor], residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(normed, total): total = sum of all ranks' parts + residual, normed = rms_norm(total).

    parts, residual: [rows, H] of one dtype.  The sum is made in fp32, in the order of the ranks,
    and rounded once: every rank has the same bits.
    """
    total = torch.zeros(residual.shape, dtype=torch.float32, device=residual.device)
    for part in parts:
        total += part.float()
    rounded = (total + residual.float()).to(residual.dtype)
    return rms_norm(rounded, weight, eps), rounded
