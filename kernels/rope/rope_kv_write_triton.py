"""q/k-norm, rope and KV write in one launch: one program a token and block of heads.

The first programs of a token turn its q heads, the others its k heads and copy its v heads.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..launch.dependent import enter, options

BLOCK_HEADS = 8


@triton.jit
def _load_rotated(x_ptr, norm_ptr, cos, sin, col, mask, dim, eps, HAS_NORM: tl.constexpr):
    """Both halves, rotated, of a block of heads; x_ptr points at [heads, 0]."""
    low = tl.load(x_ptr + col, mask=mask, other=0.0).to(tl.float32)
    high = tl.load(x_ptr + dim // 2 + col, mask=mask, other=0.0).to(tl.float32)
    if HAS_NORM:
        square = tl.sum(low * low, axis=1) + tl.sum(high * high, axis=1)
        scale = tl.rsqrt(square / dim + eps)[:, None]
        half_mask = col < dim // 2
        low *= scale * tl.load(norm_ptr + col, mask=half_mask, other=0.0).to(tl.float32)
        high *= scale * tl.load(norm_ptr + dim // 2 + col, mask=half_mask, other=0.0).to(tl.float32)
    return low * cos - high * sin, high * cos + low * sin


@triton.jit
def _store_halves(ptr, low, high, half, mask):
    tl.store(ptr, low.to(ptr.dtype.element_ty), mask=mask)
    tl.store(ptr + half, high.to(ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize_on_alignment=["position_ptr", "slot_ptr"])
def _rope_kv_write_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    position_ptr,
    cos_sin_ptr,
    k_cache_ptr,
    v_cache_ptr,
    slot_ptr,
    q_norm_ptr,
    k_norm_ptr,
    out_ptr,
    q_stride_t,
    q_stride_h,
    k_stride_t,
    k_stride_h,
    v_stride_t,
    v_stride_h,
    q_heads,
    kv_heads,
    dim,
    eps,
    HAS_Q_NORM: tl.constexpr,
    HAS_K_NORM: tl.constexpr,
    Q_BLOCKS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    PDL: tl.constexpr,
):
    enter(PDL)
    token = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    half = dim // 2
    col = tl.arange(0, BLOCK_HALF)[None, :]
    position = tl.load(position_ptr + token).to(tl.int64)
    cos = tl.load(cos_sin_ptr + position * dim + col, mask=col < half, other=0.0)
    sin = tl.load(cos_sin_ptr + position * dim + half + col, mask=col < half, other=0.0)
    rows = tl.arange(0, BLOCK_H)[:, None]
    if block < Q_BLOCKS:
        head = block * BLOCK_H + rows
        mask = (head < q_heads) & (col < half)
        low, high = _load_rotated(
            q_ptr + token * q_stride_t + head * q_stride_h,
            q_norm_ptr,
            cos,
            sin,
            col,
            mask,
            dim,
            eps,
            HAS_Q_NORM,
        )
        _store_halves(out_ptr + (token * q_heads + head) * dim + col, low, high, half, mask)
    else:
        # One slot per row of the tile: masks then have the tile's shape.
        slot = tl.load(slot_ptr + token).to(tl.int64) + tl.zeros_like(rows)
        head = (block - Q_BLOCKS) * BLOCK_H + rows
        mask = (head < kv_heads) & (col < half) & (slot >= 0)
        low, high = _load_rotated(
            k_ptr + token * k_stride_t + head * k_stride_h,
            k_norm_ptr,
            cos,
            sin,
            col,
            mask,
            dim,
            eps,
            HAS_K_NORM,
        )
        at = (slot * kv_heads + head) * dim + col
        _store_halves(k_cache_ptr + at, low, high, half, mask)
        values = v_ptr + token * v_stride_t + head * v_stride_h + col
        value_low = tl.load(values, mask=mask, other=0.0)
        value_high = tl.load(values + half, mask=mask, other=0.0)
        _store_halves(v_cache_ptr + at, value_low, value_high, half, mask)


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
    """See reference.rope_kv_write; heads must be contiguous in q, k, v, and the caches all over."""
    tokens, q_heads, dim = q.shape
    kv_heads = k.shape[1]
    out = torch.empty((tokens, q_heads, dim), dtype=q.dtype, device=q.device)
    if tokens == 0:
        return out
    q_blocks = triton.cdiv(q_heads, BLOCK_HEADS)
    grid = (tokens, q_blocks + triton.cdiv(kv_heads, BLOCK_HEADS))
    _rope_kv_write_kernel[grid](
        q,
        k,
        v,
        positions.contiguous(),
        cos_sin,
        k_cache,
        v_cache,
        slot_mapping.contiguous(),
        cos_sin if q_norm is None else q_norm,
        cos_sin if k_norm is None else k_norm,
        out,
        q.stride(0),
        q.stride(1),
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        q_heads,
        kv_heads,
        dim,
        eps,
        HAS_Q_NORM=q_norm is not None,
        HAS_K_NORM=k_norm is not None,
        Q_BLOCKS=q_blocks,
        BLOCK_H=BLOCK_HEADS,
        BLOCK_HALF=triton.next_power_of_2(dim // 2),
        num_warps=4,
        **options(out),
    )
    return out
