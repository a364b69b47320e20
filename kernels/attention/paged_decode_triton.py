"""Paged decode attention: split-KV flash-decoding, then a merge (Dao et al., 2023,
"Flash-Decoding for long-context inference"; online softmax of Milakov and Gimelshein, 2018).

How a row is split depends on its own length alone, so neither the other rows nor the size of the
grid change a bit of the result: up to MAX_SPLITS parts of at least MIN_SPLIT tokens, a power of
two. A program takes one row, the q heads that share a kv head, and every SLOTS-th part; the grid
is fixed by the host and programs without work leave at once, so a CUDA graph may be replayed
with other lengths. The q heads of a group are padded to 16 rows, the least that tensor cores take.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

MIN_SPLIT = 256
MAX_SPLITS = 32
BLOCK_HEADS = 16
#: Enough programs to fill 132 multiprocessors several times; more only leave at once.
TARGET_PROGRAMS = 4096

_MIN_SPLIT = tl.constexpr(MIN_SPLIT)
_MAX_SPLITS = tl.constexpr(MAX_SPLITS)


@triton.jit
def _split_size(length):
    """Tokens of each part of a row: MIN_SPLIT, doubled until MAX_SPLITS parts are enough."""
    size = length * 0 + _MIN_SPLIT
    while size * _MAX_SPLITS < length:
        size *= 2
    return size


@triton.jit
def _attend_part(
    q,
    k_base,
    v_base,
    pages_ptr,
    start,
    end,
    page_stride,
    token_stride,
    factor,
    PAGE: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """(values not yet divided, sum, maximum in log2) of q [BLOCK_H, DIM] over [start, end)."""
    col = tl.arange(0, DIM)
    top = tl.full([BLOCK_H], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_H], tl.float32)
    acc = tl.zeros([BLOCK_H, DIM], tl.float32)
    for first in range(start, end, BLOCK_N):
        token = first + tl.arange(0, BLOCK_N)
        mask = token < end
        page = tl.load(pages_ptr + token // PAGE, mask=mask, other=0).to(tl.int64)
        at = page * page_stride + (token % PAGE) * token_stride
        k = tl.load(k_base + at[None, :] + col[:, None], mask=mask[None, :], other=0.0)
        v = tl.load(v_base + at[:, None] + col[None, :], mask=mask[:, None], other=0.0)
        scores = tl.dot(q, k, input_precision="ieee") * factor
        scores = tl.where(mask[None, :], scores, -float("inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        shrink = tl.exp2(top - new_top)
        weight = tl.exp2(scores - new_top[:, None])
        total = total * shrink + tl.sum(weight, axis=1)
        acc = acc * shrink[:, None]
        acc = tl.dot(weight.to(v.dtype), v, acc, input_precision="ieee")
        top = new_top
    return acc, total, top


# Tables and lengths are slices whose alignment and width change from step to step: one variant.
@triton.jit(
    do_not_specialize=["pages_stride"],
    do_not_specialize_on_alignment=["page_table_ptr", "seq_lens_ptr"],
)
def _decode_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    page_table_ptr,
    seq_lens_ptr,
    part_ptr,
    lse_ptr,
    q_stride_t,
    q_stride_h,
    page_stride,
    token_stride,
    head_stride,
    pages_stride,
    heads,
    group,
    factor,
    PAGE: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
    GROUP_BLOCKS: tl.constexpr,
    PARTS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1) // GROUP_BLOCKS
    member = (tl.program_id(1) % GROUP_BLOCKS) * BLOCK_H + tl.arange(0, BLOCK_H)
    length = tl.load(seq_lens_ptr + row)
    size = _split_size(length)
    parts = tl.cdiv(length, size)
    if tl.program_id(2) < parts:
        head = kv_head * group + member
        real = member < group
        col = tl.arange(0, DIM)
        q_at = row * q_stride_t + head[:, None] * q_stride_h + col[None, :]
        q = tl.load(q_ptr + q_at, mask=real[:, None], other=0.0)
        for part in range(tl.program_id(2), parts, tl.num_programs(2)):
            start = part * size
            acc, total, top = _attend_part(
                q,
                k_ptr + kv_head * head_stride,
                v_ptr + kv_head * head_stride,
                page_table_ptr + row * pages_stride,
                start,
                tl.minimum(start + size, length),
                page_stride,
                token_stride,
                factor,
                PAGE,
                DIM,
                BLOCK_N,
                BLOCK_H,
            )
            at = (row * heads + head) * PARTS + part
            out = acc / total[:, None]
            tl.store(part_ptr + at[:, None] * DIM + col[None, :], out, mask=real[:, None])
            tl.store(lse_ptr + at, top + tl.log2(total), mask=real)


@triton.jit(do_not_specialize_on_alignment=["seq_lens_ptr"])
def _merge_kernel(
    part_ptr,
    lse_ptr,
    seq_lens_ptr,
    out_ptr,
    out_stride_t,
    out_stride_h,
    heads,
    PARTS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Weigh the parts of one row and head by their log-sum-exp; a row of length 0 gets zeros."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    length = tl.load(seq_lens_ptr + row)
    parts = tl.cdiv(length, _split_size(length))
    col = tl.arange(0, DIM)
    acc = tl.zeros([DIM], tl.float32)
    if parts > 0:
        part = tl.arange(0, BLOCK_P)
        at = (row * heads + head) * PARTS + part
        lse = tl.load(lse_ptr + at, mask=part < parts, other=-float("inf"))
        weight = tl.exp2(lse - tl.max(lse, axis=0))
        values = tl.load(
            part_ptr + at[:, None] * DIM + col[None, :], mask=(part < parts)[:, None], other=0.0
        )
        acc = tl.sum(values * weight[:, None], axis=0) / tl.sum(weight, axis=0)
    out_at = row * out_stride_t + head * out_stride_h + col
    tl.store(out_ptr + out_at, acc.to(out_ptr.dtype.element_ty))


def paged_decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    page_table: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
    max_seq_len: int | None = None,
    out: torch.Tensor | None = None,
    tile: tuple[int, int, int] | None = None,
) -> torch.Tensor:
    """See ops.paged_attention.paged_decode; tile is (BLOCK_N, warps, stages), default `_tile`."""
    rows, heads, dim = q.shape
    _, page_size, kv_heads, _ = k_cache.shape
    if out is None:
        out = torch.empty((rows, heads, dim), dtype=q.dtype, device=q.device)
    if rows == 0:
        return out
    bound = page_table.shape[1] * page_size if max_seq_len is None else max_seq_len
    # A power of two, so that few variants are compiled whatever bounds are passed.
    parts = min(MAX_SPLITS, triton.next_power_of_2(max(1, triton.cdiv(bound, MIN_SPLIT))))
    block_n, warps, stages = tile or _tile(dim, q.element_size())
    part_out = torch.empty((rows, heads, parts, dim), dtype=torch.float32, device=q.device)
    lse = torch.empty((rows, heads, parts), dtype=torch.float32, device=q.device)
    group = heads // kv_heads
    group_blocks = triton.cdiv(group, BLOCK_HEADS)
    programs = rows * kv_heads * group_blocks
    slots = min(parts, max(1, triton.cdiv(TARGET_PROGRAMS, programs)))
    _decode_kernel[(rows, kv_heads * group_blocks, slots)](
        q,
        k_cache,
        v_cache,
        page_table,
        seq_lens.contiguous(),
        part_out,
        lse,
        q.stride(0),
        q.stride(1),
        k_cache.stride(0),
        k_cache.stride(1),
        k_cache.stride(2),
        page_table.stride(0),
        heads,
        group,
        scale * 1.4426950408889634,
        PAGE=page_size,
        DIM=dim,
        BLOCK_N=block_n,
        BLOCK_H=BLOCK_HEADS,
        GROUP_BLOCKS=group_blocks,
        PARTS=parts,
        num_warps=warps,
        num_stages=stages,
    )
    _merge_kernel[(rows, heads)](
        part_out,
        lse,
        seq_lens.contiguous(),
        out,
        out.stride(0),
        out.stride(1),
        heads,
        PARTS=parts,
        DIM=dim,
        BLOCK_P=parts,
        num_warps=2,
    )
    return out


def _tile(dim: int, element_size: int) -> tuple[int, int, int]:
    """(BLOCK_N, warps, stages): K and V tiles of 16 KB each, so that several programs fit an SM."""
    return max(16, min(64, 16384 // (dim * element_size))), 4, 3
