"""Collectives fused with what follows them; on GPUs that read each other's memory only."""

from __future__ import annotations

import torch

from hpcserve.ops._dispatch import kernel


def sum_add_rms_norm(
    peers: tuple[tuple[int, ...], torch.Tensor, torch.Tensor, int],
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(normed, total) of the sum of all ranks' parts and the residual [rows, H].

    peers: (addresses of the parts, flags, meetings, rank), as kernels/comm/sum_add_rms_norm_triton
    says; its reference is in kernels/comm/reference.py.
    """
    module = kernel("comm.sum_add_rms_norm_triton")
    normed, total = module.sum_add_rms_norm(module.Peers(*peers), residual, weight, eps)
    return normed, total
