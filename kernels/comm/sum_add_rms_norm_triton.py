"""All-reduce, residual add and RMSNorm in one launch, over memory that all ranks of a node read.

One-shot: every rank reads the parts of all others and sums them itself, one program a row. Before
that a program tells the programs of the same row on the other ranks that its part is written, and
waits for their word: a number that grows with every meeting, written into their flags. So there is
one meeting a call, where reading a flag back to zero would take two; the price is that a part's
memory must not be written again before another meeting, which two buffers in turn give.

Plain loads, stores and atomics of the system's scope over NVLink; its multicast is not used.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..launch.dependent import enter, options

#: Rows of one call: each has flags of its own.
MAX_ROWS = 512
MAX_RANKS = 8


class Peers(NamedTuple):
    """What the ranks of a group share, as one of them sees it.

    parts_at: address of each rank's part, a multiple of 16, of at most MAX_RANKS.  flags_at: int64
    [ranks] addresses of each rank's flags, int32 [MAX_ROWS, ranks], zeros at first.  meetings:
    int32 [MAX_ROWS], this rank's own count, zeros at first.
    """

    parts_at: tuple[int, ...]
    flags_at: torch.Tensor
    meetings: torch.Tensor
    rank: int

    @property
    def size(self) -> int:
        return len(self.parts_at)


@triton.jit
def _flags(flags_at_ptr, row, rank, SIZE: tl.constexpr, LANES: tl.constexpr):
    """(where this row's program tells each rank, where each rank tells it).

    Addresses never change: they may be read before the kernels before this one are done.
    """
    peer = tl.arange(0, LANES)
    at = tl.load(flags_at_ptr + peer, mask=peer < SIZE, other=0).to(tl.pointer_type(tl.int32))
    own = tl.load(flags_at_ptr + rank).to(tl.pointer_type(tl.int32))
    return at + row * SIZE + rank, own + row * SIZE + peer


@triton.jit
def _meet(theirs, own, meetings_ptr, row, SIZE: tl.constexpr, LANES: tl.constexpr):
    """Return when this row's program of every rank has come here as often as this one."""
    exists = tl.arange(0, LANES) < SIZE
    number = tl.load(meetings_ptr + row) + 1
    tl.atomic_xchg(theirs, number, mask=exists, sem="release", scope="sys")
    late = 1
    while late > 0:
        seen = tl.atomic_add(
            own, tl.zeros([LANES], tl.int32), mask=exists, sem="acquire", scope="sys"
        )
        # The difference survives the number's wrapping.
        late = tl.max(tl.where(exists & (seen - number < 0), 1, 0), axis=0)
    tl.debug_barrier()
    tl.store(meetings_ptr + row, number)


@triton.jit
def _load(address, first, cols, mask, KIND: tl.constexpr):
    """A rank's row in fp32, past L1, which may hold what stood there two calls ago."""
    part = tl.multiple_of(address.to(tl.int64).to(tl.pointer_type(KIND)), 16)
    x = tl.load(part + first + cols, mask=mask, other=0.0, cache_modifier=".cg")
    return x.to(tl.float32)


@triton.jit
def _sum_kernel(
    part_0,
    part_1,
    part_2,
    part_3,
    part_4,
    part_5,
    part_6,
    part_7,
    flags_at_ptr,
    meetings_ptr,
    residual_ptr,
    weight_ptr,
    out_ptr,
    total_ptr,
    residual_stride,
    size,
    eps,
    rank,
    SIZE: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    mask = cols < size
    # The weight never changes: it may be read before the kernels before this one are done.
    weight = tl.load(weight_ptr + cols, mask=mask, other=0.0).to(tl.float32)
    theirs, own = _flags(flags_at_ptr, row, rank, SIZE, LANES)
    enter(PDL)
    residual = tl.load(residual_ptr + row * residual_stride + cols, mask=mask, other=0.0)
    _meet(theirs, own, meetings_ptr, row, SIZE, LANES)
    KIND: tl.constexpr = total_ptr.dtype.element_ty
    first = row * size
    total = _load(part_0, first, cols, mask, KIND) + _load(part_1, first, cols, mask, KIND)
    if SIZE > 2:
        total += _load(part_2, first, cols, mask, KIND)
    if SIZE > 3:
        total += _load(part_3, first, cols, mask, KIND)
    if SIZE > 4:
        total += _load(part_4, first, cols, mask, KIND)
    if SIZE > 5:
        total += _load(part_5, first, cols, mask, KIND)
    if SIZE > 6:
        total += _load(part_6, first, cols, mask, KIND)
    if SIZE > 7:
        total += _load(part_7, first, cols, mask, KIND)
    rounded = (total + residual.to(tl.float32)).to(total_ptr.dtype.element_ty)
    tl.store(total_ptr + row * size + cols, rounded, mask=mask)
    x = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / size + eps)
    out = x * scale * weight
    tl.store(out_ptr + row * size + cols, out.to(out_ptr.dtype.element_ty), mask=mask)


def sum_add_rms_norm(
    peers: Peers, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """See reference.sum_add_rms_norm; residual [rows, H] with at most MAX_ROWS rows, the parts
    contiguous and of its dtype. All ranks must call it, with as many rows."""
    rows, size = residual.shape
    out = torch.empty((rows, size), dtype=residual.dtype, device=residual.device)
    total = torch.empty_like(out)
    if rows == 0:
        return out, total
    if residual.stride(1) != 1:
        residual = residual.contiguous()
    block = triton.next_power_of_2(size)
    _sum_kernel[(rows,)](
        *peers.parts_at,
        *(0,) * (MAX_RANKS - peers.size),
        peers.flags_at,
        peers.meetings,
        residual,
        weight,
        out,
        total,
        residual.stride(0),
        size,
        eps,
        peers.rank,
        SIZE=peers.size,
        LANES=triton.next_power_of_2(peers.size),
        BLOCK=block,
        num_warps=min(32, max(1, block // 256)),
        **options(residual),
    )
    return out, total
