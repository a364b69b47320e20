"""Writing keys and values into the paged pool: one program a token and block of heads."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK_HEADS = 8


@triton.jit(do_not_specialize_on_alignment=["slot_ptr"])
def _write_kv_kernel(
    k_ptr,
    v_ptr,
    k_cache_ptr,
    v_cache_ptr,
    slot_ptr,
    k_stride_t,
    k_stride_h,
    v_stride_t,
    v_stride_h,
    heads,
    dim,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_ptr + token).to(tl.int64)
    if slot < 0:
        return
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)[:, None]
    col = tl.arange(0, BLOCK_D)[None, :]
    mask = (head < heads) & (col < dim)
    target = slot * heads * dim + head * dim + col
    k = tl.load(k_ptr + token * k_stride_t + head * k_stride_h + col, mask=mask)
    tl.store(k_cache_ptr + target, k.to(k_cache_ptr.dtype.element_ty), mask=mask)
    v = tl.load(v_ptr + token * v_stride_t + head * v_stride_h + col, mask=mask)
    tl.store(v_cache_ptr + target, v.to(v_cache_ptr.dtype.element_ty), mask=mask)


def write_kv(
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> None:
    """See reference.write_kv; k, v need contiguous heads, the caches are contiguous."""
    tokens, heads, dim = k.shape
    if tokens == 0:
        return
    grid = (tokens, triton.cdiv(heads, BLOCK_HEADS))
    _write_kv_kernel[grid](
        k,
        v,
        k_cache,
        v_cache,
        slot_mapping.contiguous(),
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        heads,
        dim,
        BLOCK_H=BLOCK_HEADS,
        BLOCK_D=triton.next_power_of_2(dim),
        num_warps=4,
    )
