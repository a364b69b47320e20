"""Rotary position embedding in plain torch (Su et al., 2021, "RoFormer"), neox layout:
dimension i is rotated together with dimension i + head_dim / 2."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ..kv_store.reference import write_kv


def cos_sin_cache(
    inv_freq: torch.Tensor, max_position: int, scaling_factor: float = 1.0
) -> torch.Tensor:
    """fp32 [max_position, 2 * len(inv_freq)]: cosines of every position, then sines.

    scaling_factor multiplies both (the attention factor of YaRN; 1 elsewhere).
    """
    positions = torch.arange(max_position, dtype=torch.float32, device=inv_freq.device)
    angles = torch.outer(positions, inv_freq.float())
    return torch.cat((angles.cos(), angles.sin()), dim=-1) * scaling_factor


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate x [T, H, D] by cos, sin [T, 1, D / 2]; fp32 in and out."""
    low, high = x.chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)


def _norm_and_rotate(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    eps: float,
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> torch.Tensor:
    wide = x.float()
    if weight is not None:
        wide = F.rms_norm(wide, (wide.shape[-1],), weight.float(), eps)
    return rotate(wide, cos, sin).to(x.dtype)


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
    """Normalise (where weights are given) and rotate q and k, write k and v, return q.

    q [T, Hq, D]; k, v [T, Hkv, D]; positions int [T]; cos_sin as of `cos_sin_cache`; caches and
    slot_mapping as of `write_kv`; q_norm, k_norm [D]. Norm and rotation in fp32, rounded once.
    """
    cos, sin = cos_sin[positions].unsqueeze(1).chunk(2, dim=-1)
    write_kv(_norm_and_rotate(k, k_norm, eps, cos, sin), v, k_cache, v_cache, slot_mapping)
    return _norm_and_rotate(q, q_norm, eps, cos, sin)
