"""Paged decode attention: split-KV flash-decoding (Dao et al., 2023, "Flash-Decoding for
long-context inference"; online softmax of Milakov and Gimelshein, 2018).

How a row is split depends on its own length alone, so neither the other rows nor the size of the
grid change a bit of the result: up to MAX_SPLITS parts of at least `min_split` tokens, a power of
two. A program takes one row, the q heads that share a kv head, and every SLOTS-th part; the grid
is fixed by the host and programs without work leave at once, so a CUDA graph may be replayed
with other lengths. The last program to finish a part of a row (a counter tells) merges the parts,
always in their order. The q heads of a group are padded to 16 rows, the least that tensor cores
take.

With FRESH, q comes as the linear layer made it, and the last token's k and v are not in the pool
yet: every program rotates its q heads, and the one that attends to the last token writes that
token's k and v first, for itself and for later steps. No other program may read them: of the rows
of one launch, none may hold another's last token in its history. With pages of one token, requests
that share a prefix and enter in the same step do.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from ..launch.dependent import enter, options
from .fresh_token_triton import rotated, write_last
from .reference import Fresh

MIN_SPLIT = 256
MAX_SPLITS = 32
BLOCK_HEADS = 16
#: Enough programs to fill 132 multiprocessors several times; more only leave at once.
TARGET_PROGRAMS = 4096

#: Values that one round of the merge holds, and parts at most.
MERGED_VALUES, MERGED_PARTS = 8192, 8

_MAX_SPLITS = tl.constexpr(MAX_SPLITS)


@triton.jit
def _split_size(length, MIN_SPLIT: tl.constexpr):
    """Tokens of each part of a row: MIN_SPLIT, doubled until MAX_SPLITS parts are enough."""
    size = length * 0 + MIN_SPLIT
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


@triton.jit
def _merge(
    part_ptr,
    lse_ptr,
    out_ptr,
    first_head,
    heads,
    parts,
    member,
    real,
    out_stride_h,
    DIM: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """Weigh the parts of heads `member` by their log-sum-exp, in their order.

    part_ptr, lse_ptr: the row's, [parts, heads].  out_ptr: the output of first_head.
    """
    col = tl.arange(0, DIM)
    # .cg reads from L2, where the other programs' parts are.
    every = tl.arange(0, _MAX_SPLITS)
    all_lse = tl.load(
        lse_ptr + every[:, None] * heads + first_head + member[None, :],
        mask=(every < parts)[:, None] & real[None, :],
        other=-float("inf"),
        cache_modifier=".cg",
    )
    # Heads of padding have no part at all.
    top = tl.where(real, tl.max(all_lse, axis=0), 0.0)
    total = tl.where(real, tl.sum(tl.exp2(all_lse - top[None, :]), axis=0), 1.0)
    acc = tl.zeros([BLOCK_H, DIM], tl.float32)
    for first in range(0, parts, BLOCK_P):
        # Written out, so that all of a round's loads are under way together.
        for inner in tl.static_range(BLOCK_P):
            part = first + inner
            at = part * heads + first_head + member
            mask = real & (member * 0 + part < parts)  # of a scalar, the interpreter makes no mask
            lse = tl.load(lse_ptr + at, mask=mask, other=-float("inf"), cache_modifier=".cg")
            values = tl.load(
                part_ptr + at[:, None] * DIM + col[None, :],
                mask=mask[:, None],
                other=0.0,
                cache_modifier=".cg",
            )
            acc += values * tl.exp2(lse - top)[:, None]
    out = acc / total[:, None]
    out_at = member[:, None] * out_stride_h + col[None, :]
    tl.store(out_ptr + out_at, out.to(out_ptr.dtype.element_ty), mask=real[:, None])


# Tables and lengths are slices whose alignment and width change from step to step, and so does how
# many parts a row may have: one variant.
@triton.jit(
    do_not_specialize=["pages_stride", "most_parts"],
    do_not_specialize_on_alignment=["page_table_ptr", "seq_lens_ptr"],
)
def _decode_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    page_table_ptr,
    seq_lens_ptr,
    out_ptr,
    part_ptr,
    lse_ptr,
    counter_ptr,
    fresh_k_ptr,
    fresh_v_ptr,
    cos_sin_ptr,
    q_norm_ptr,
    k_norm_ptr,
    q_stride_t,
    q_stride_h,
    page_stride,
    token_stride,
    head_stride,
    pages_stride,
    most_parts,
    out_stride_t,
    out_stride_h,
    fresh_k_stride_t,
    fresh_k_stride_h,
    fresh_v_stride_t,
    fresh_v_stride_h,
    heads,
    group,
    factor,
    eps,
    FRESH: tl.constexpr,
    HAS_Q_NORM: tl.constexpr,
    HAS_K_NORM: tl.constexpr,
    PAGE: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
    GROUP_BLOCKS: tl.constexpr,
    MERGED_HEADS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    MIN_SPLIT: tl.constexpr,
    PDL: tl.constexpr,
):
    enter(PDL)
    row = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1) // GROUP_BLOCKS
    first_member = (tl.program_id(1) % GROUP_BLOCKS) * BLOCK_H
    member = first_member + tl.arange(0, BLOCK_H)
    length = tl.load(seq_lens_ptr + row)
    size = _split_size(length, MIN_SPLIT)
    parts = tl.cdiv(length, size)
    head = kv_head * group + member
    real = member < group
    col = tl.arange(0, DIM)
    out_at = row * out_stride_t + head[:, None] * out_stride_h + col[None, :]
    if (parts == 0) & (tl.program_id(2) == 0):
        zeros = tl.zeros([BLOCK_H, DIM], out_ptr.dtype.element_ty)
        tl.store(out_ptr + out_at, zeros, mask=real[:, None])
    if tl.program_id(2) < parts:
        q_at = q_ptr + row * q_stride_t + head[:, None] * q_stride_h
        if FRESH:
            angles = cos_sin_ptr + (length - 1).to(tl.int64) * DIM
            turned = rotated(q_at, q_norm_ptr, angles, real[:, None], eps, HAS_Q_NORM, DIM)
            q = turned.to(q_ptr.dtype.element_ty)
            if tl.program_id(2) == (parts - 1) % tl.num_programs(2):
                page = tl.load(page_table_ptr + row * pages_stride + (length - 1) // PAGE)
                at = page.to(tl.int64) * page_stride + ((length - 1) % PAGE) * token_stride
                at += kv_head * head_stride
                write_last(
                    fresh_k_ptr + row * fresh_k_stride_t + kv_head * fresh_k_stride_h,
                    fresh_v_ptr + row * fresh_v_stride_t + kv_head * fresh_v_stride_h,
                    k_ptr + at,
                    v_ptr + at,
                    k_norm_ptr,
                    angles,
                    eps,
                    HAS_K_NORM,
                    DIM,
                )
        else:
            q = tl.load(q_at + col[None, :], mask=real[:, None], other=0.0)
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
            out = acc / total[:, None]
            if parts == 1:
                tl.store(out_ptr + out_at, out.to(out_ptr.dtype.element_ty), mask=real[:, None])
            else:
                at = (row * most_parts + part) * heads
                inside = head[:, None] * DIM + col[None, :]
                tl.store(part_ptr + at * DIM + inside, out, mask=real[:, None])
                tl.store(lse_ptr + at + head, top + tl.log2(total), mask=real)
        if parts > 1:
            # All threads have stored before one of them publishes it to the other programs.
            tl.debug_barrier()
            counter = counter_ptr + row * tl.num_programs(1) + tl.program_id(1)
            arrived = tl.atomic_add(counter, 1, sem="acq_rel")
            if arrived == tl.minimum(parts, tl.num_programs(2)) - 1:
                merged = first_member + tl.arange(0, MERGED_HEADS)
                first_head = kv_head * group
                _merge(
                    part_ptr + row * most_parts * heads * DIM,
                    lse_ptr + row * most_parts * heads,
                    out_ptr + row * out_stride_t + first_head * out_stride_h,
                    first_head,
                    heads,
                    parts,
                    merged,
                    merged < group,
                    out_stride_h,
                    DIM,
                    BLOCK_P,
                    MERGED_HEADS,
                )
                tl.store(counter, 0)


@cache
def _counters(device: torch.device, size: int) -> torch.Tensor:
    """Zeros that every launch leaves as zeros. Made by the first call of its size, which must not
    be inside a graph capture; launches that share a device must share a stream."""
    return torch.zeros(size, dtype=torch.int32, device=device)


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
    min_split: int | None = None,
    fresh: Fresh | None = None,
) -> torch.Tensor:
    """See ops.paged_attention.paged_decode; tile is (BLOCK_N, warps, stages), default `_tile`.

    With `fresh`, see reference.rope_paged_decode; at most 16 q heads may share a kv head then.
    """
    min_split = min_split or MIN_SPLIT
    rows, heads, dim = q.shape
    _, page_size, kv_heads, _ = k_cache.shape
    if out is None:
        out = torch.empty((rows, heads, dim), dtype=q.dtype, device=q.device)
    if rows == 0:
        return out
    bound = page_table.shape[1] * page_size if max_seq_len is None else max_seq_len
    parts = min(MAX_SPLITS, max(1, triton.cdiv(bound, min_split)))
    block_n, warps, stages = tile or _tile(dim, q.element_size(), min_split)
    part_out = torch.empty((rows, parts, heads, dim), dtype=torch.float32, device=q.device)
    lse = torch.empty((rows, parts, heads), dtype=torch.float32, device=q.device)
    group = heads // kv_heads
    group_blocks = triton.cdiv(group, BLOCK_HEADS)
    programs = rows * kv_heads * group_blocks
    slots = min(parts, max(1, triton.cdiv(TARGET_PROGRAMS, programs)))
    merged_heads = min(BLOCK_HEADS, triton.next_power_of_2(group))
    if fresh is not None and group_blocks > 1:
        raise ValueError(f"{group} q heads share a kv head, at most {BLOCK_HEADS} can here")
    new_k, new_v = (q, q) if fresh is None else (fresh.k, fresh.v)
    norms = (None, None) if fresh is None else (fresh.q_norm, fresh.k_norm)
    _decode_kernel[(rows, kv_heads * group_blocks, slots)](
        q,
        k_cache,
        v_cache,
        page_table,
        seq_lens.contiguous(),
        out,
        part_out,
        lse,
        _counters(q.device, triton.next_power_of_2(programs)),
        new_k,
        new_v,
        lse if fresh is None else fresh.cos_sin,
        *(q if norm is None else norm for norm in norms),
        q.stride(0),
        q.stride(1),
        k_cache.stride(0),
        k_cache.stride(1),
        k_cache.stride(2),
        page_table.stride(0),
        parts,
        out.stride(0),
        out.stride(1),
        new_k.stride(0),
        new_k.stride(1),
        new_v.stride(0),
        new_v.stride(1),
        heads,
        group,
        scale * 1.4426950408889634,
        0.0 if fresh is None else fresh.eps,
        FRESH=fresh is not None,
        HAS_Q_NORM=norms[0] is not None,
        HAS_K_NORM=norms[1] is not None,
        PAGE=page_size,
        DIM=dim,
        BLOCK_N=block_n,
        BLOCK_H=BLOCK_HEADS,
        GROUP_BLOCKS=group_blocks,
        MERGED_HEADS=merged_heads,
        BLOCK_P=max(1, min(MERGED_PARTS, MERGED_VALUES // (merged_heads * dim))),
        MIN_SPLIT=min_split,
        num_warps=warps,
        num_stages=stages,
        **options(q),
    )
    return out


def _tile(dim: int, element_size: int, min_split: int) -> tuple[int, int, int]:
    """(BLOCK_N, warps, stages): K and V tiles of 16 KB each, so that several programs fit an SM;
    more of them fit with two stages, which longer parts gain from."""
    return max(16, min(64, 16384 // (dim * element_size))), 4, 3 if min_split < 256 else 2
