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

    peers: (addresses of the parts, flags, meetings, rank), as kernels/comm/peers says; its
    reference is in kernels/comm/reference.py.
    """
    shared = kernel("comm.peers").Peers(*peers)
    module = kernel("comm.sum_add_rms_norm_triton")
    normed, total = module.sum_add_rms_norm(shared, residual, weight, eps)
    return normed, total


def push_sum_norm(
    peers: tuple[tuple[int, ...], torch.Tensor, torch.Tensor, int],
    outputs: tuple[torch.Tensor, tuple[int, ...]],
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    whole: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`sum_add_rms_norm` of larger sums: each rank sums some rows, and gives all their norms.

    outputs: (this rank's memory [2, rows, H], address of each rank's).  whole: False leaves the
    total's other rows undefined; it is enough that residual has those which are this rank's.
    """
    shared = kernel("comm.peers").Peers(*peers)
    module = kernel("comm.push_sum_norm_triton")
    normed, total = module.push_sum_norm(
        shared, module.Outputs(*outputs), residual, weight, eps, whole
    )
    return normed, total
