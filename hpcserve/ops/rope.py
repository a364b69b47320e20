"""Rotary embedding of q and k, with the optional per-head norm and the KV write in one launch."""

from __future__ import annotations

import torch

from hpcserve.kernels.rope import reference
from hpcserve.kernels.rope.reference import cos_sin_cache
from hpcserve.ops._dispatch import kernel, use_kernel

__all__ = ["cos_sin_cache", "rope_kv_write"]


def rope_kv_write(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    positions: torch.Tensor,
    cos_sin: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 1e-6,
) -> torch.Tensor:
    """Normalise (where weights are given), rotate and store; returns the new q [T, Hq, D].

    q: [T, Hq, D]; k, v: [T, Hkv, D]; they may be strided views of one qkv tensor as long as each
    head's D values are contiguous. positions: int [T]. cos_sin: see `cos_sin_cache`.
    k_cache, v_cache: [num_pages, page_size, Hkv, D]; slot_mapping: int [T], page * page_size +
    offset, below 0 for padding. q_norm, k_norm: [D], RMSNorm weights over each head.
    """
    run = reference.rope_kv_write
    if use_kernel(q):
        run = kernel("rope.rope_kv_write_triton").rope_kv_write
    return run(q, k, v, positions, cos_sin, k_cache, v_cache, slot_mapping, q_norm, k_norm, eps)
