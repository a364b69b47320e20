"""Paged causal prefill with a cached prefix, ragged rows (Dao, 2023, "FlashAttention-2").

A program takes one row, one q head and BLOCK_M consecutive queries. Keys that every one of these
queries may see need no causal mask; only the last blocks do. The grid is sized by the longest
row; programs beyond their row's queries leave at once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _attend_range(
    acc,
    total,
    top,
    q,
    k_base,
    v_base,
    pages_ptr,
    position,
    start,
    end,
    page_stride,
    token_stride,
    factor,
    MASKED: tl.constexpr,
    PAGE: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Go on with the online softmax over keys [start, end); MASKED where some must be hidden."""
    col = tl.arange(0, DIM)
    for first in range(start, end, BLOCK_N):
        token = first + tl.arange(0, BLOCK_N)
        if MASKED:
            page = tl.load(pages_ptr + token // PAGE, mask=token < end, other=0).to(tl.int64)
        else:
            page = tl.load(pages_ptr + token // PAGE).to(tl.int64)
        at = page * page_stride + (token % PAGE) * token_stride
        if MASKED:
            k = tl.load(k_base + at[None, :] + col[:, None], mask=(token < end)[None, :], other=0.0)
        else:
            k = tl.load(k_base + at[None, :] + col[:, None])
        scores = tl.dot(q, k, input_precision="ieee") * factor
        if MASKED:
            seen = (token[None, :] <= position[:, None]) & (token < end)[None, :]
            scores = tl.where(seen, scores, -float("inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        if MASKED:
            # Rows of padding see no key: keep -inf - -inf out.
            safe = tl.where(new_top > -float("inf"), new_top, 0.0)
        else:
            safe = new_top
        shrink = tl.exp2(top - safe)
        weight = tl.exp2(scores - safe[:, None])
        total = total * shrink + tl.sum(weight, axis=1)
        acc = acc * shrink[:, None]
        if MASKED:
            v = tl.load(v_base + at[:, None] + col[None, :], mask=(token < end)[:, None], other=0.0)
        else:
            v = tl.load(v_base + at[:, None] + col[None, :])
        acc = tl.dot(weight.to(v.dtype), v, acc, input_precision="ieee")
        top = new_top
    return acc, total, top


# Tables and lengths are slices whose alignment and width change from step to step: one variant.
@triton.jit(
    do_not_specialize=["pages_stride"],
    do_not_specialize_on_alignment=["page_table_ptr", "cu_ptr", "seq_lens_ptr"],
)
def _prefill_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    page_table_ptr,
    cu_ptr,
    seq_lens_ptr,
    out_ptr,
    q_stride_t,
    q_stride_h,
    out_stride_t,
    out_stride_h,
    page_stride,
    token_stride,
    head_stride,
    pages_stride,
    group,
    factor,
    PAGE: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    row = tl.program_id(2).to(tl.int64)
    head = tl.program_id(1)
    begin = tl.load(cu_ptr + row)
    queries = tl.load(cu_ptr + row + 1) - begin
    # Later blocks see more keys: start with the longest.
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    if block * BLOCK_M < queries:
        length = tl.load(seq_lens_ptr + row)
        history = length - queries
        index = block * BLOCK_M + tl.arange(0, BLOCK_M)
        position = history + index
        real = (index < queries)[:, None]
        col = tl.arange(0, DIM)[None, :]
        token = (begin + index).to(tl.int64)[:, None]
        q = tl.load(q_ptr + token * q_stride_t + head * q_stride_h + col, mask=real, other=0.0)
        k_base = k_ptr + (head // group) * head_stride
        v_base = v_ptr + (head // group) * head_stride
        pages_ptr = page_table_ptr + row * pages_stride
        acc = tl.zeros([BLOCK_M, DIM], tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        top = tl.full([BLOCK_M], -float("inf"), tl.float32)
        # A row of padding has length 0 and thus no keys at all.
        seen_by_all = tl.maximum(tl.minimum(history + block * BLOCK_M + 1, length), 0)
        middle = seen_by_all // BLOCK_N * BLOCK_N
        end = tl.maximum(tl.minimum(history + (block + 1) * BLOCK_M, length), 0)
        acc, total, top = _attend_range(
            acc,
            total,
            top,
            q,
            k_base,
            v_base,
            pages_ptr,
            position,
            0,
            middle,
            page_stride,
            token_stride,
            factor,
            False,
            PAGE,
            DIM,
            BLOCK_N,
        )
        acc, total, top = _attend_range(
            acc,
            total,
            top,
            q,
            k_base,
            v_base,
            pages_ptr,
            position,
            middle,
            end,
            page_stride,
            token_stride,
            factor,
            True,
            PAGE,
            DIM,
            BLOCK_N,
        )
        out = acc / tl.where(total > 0.0, total, 1.0)[:, None]
        out_at = token * out_stride_t + head * out_stride_h + col
        tl.store(out_ptr + out_at, out.to(out_ptr.dtype.element_ty), mask=real)


def paged_prefill(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    page_table: torch.Tensor,
    cu_query_lens: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
    max_query_len: int | None = None,
    out: torch.Tensor | None = None,
    tile: tuple[int, int, int, int] | None = None,
) -> torch.Tensor:
    """See ops.paged_attention.paged_prefill; tile is (BLOCK_M, BLOCK_N, warps, stages), default
    `_tile`."""
    tokens, heads, dim = q.shape
    _, page_size, kv_heads, _ = k_cache.shape
    rows = seq_lens.shape[0]
    if out is None:
        out = torch.empty((tokens, heads, dim), dtype=q.dtype, device=q.device)
    if rows == 0 or tokens == 0:
        return out
    block_m, block_n, warps, stages = tile or _tile(dim, q.element_size())
    blocks = triton.cdiv(tokens if max_query_len is None else max_query_len, block_m)
    _prefill_kernel[(blocks, heads, rows)](
        q,
        k_cache,
        v_cache,
        page_table,
        cu_query_lens,
        seq_lens,
        out,
        q.stride(0),
        q.stride(1),
        out.stride(0),
        out.stride(1),
        k_cache.stride(0),
        k_cache.stride(1),
        k_cache.stride(2),
        page_table.stride(0),
        heads // kv_heads,
        scale * 1.4426950408889634,
        PAGE=page_size,
        DIM=dim,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        num_warps=warps,
        num_stages=stages,
    )
    return out


def _tile(dim: int, element_size: int) -> tuple[int, int, int, int]:
    """(BLOCK_M, BLOCK_N, warps, stages) that fit 227 KB of shared memory and the registers."""
    if element_size == 4:
        return (32, 32, 4, 2) if dim <= 128 else (16, 16, 4, 2)
    if dim <= 128:
        return 128, 64, 8, 3
    return 64, 32, 4, 2
