"""Mixture of experts: which experts a token takes, and what they make of it."""

from __future__ import annotations

import torch

from hpcserve.kernels.moe import reference
from hpcserve.kernels.moe.reference import unpack
from hpcserve.ops._dispatch import kernel, use_kernel

__all__ = ["experts", "pack", "route", "unpack"]


def route(logits: torch.Tensor, k: int, renormalize: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """See kernels/moe/reference.py."""
    if use_kernel(logits):
        chosen: tuple[torch.Tensor, torch.Tensor]
        chosen = kernel("moe.route_triton").route(logits, k, renormalize)
        return chosen
    return reference.route(logits, k, renormalize)


def experts(
    hidden: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    weights: torch.Tensor,
    ids: torch.Tensor,
    first_expert: int,
) -> torch.Tensor:
    """See kernels/moe/reference.py."""
    if use_kernel(hidden):
        module = kernel("moe.grouped_gemm_triton")
        out: torch.Tensor = module.experts(hidden, gate_up, down, weights, ids, first_expert)
        return out
    return reference.experts(hidden, gate_up, down, weights, ids, first_expert)


def pack(
    hidden: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, capacity: int, copies: int
) -> torch.Tensor:
    """See kernels/moe/reference.py."""
    run = reference.pack
    if use_kernel(hidden):
        run = kernel("moe.pack_triton").pack
    return run(hidden, weights, ids, capacity, copies)
