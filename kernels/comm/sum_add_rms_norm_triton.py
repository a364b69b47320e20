"""All-reduce, residual add and RMSNorm in one launch, over memory that all ranks of a node read.

One-shot: every rank reads the parts of all others and sums them itself, one program a row, after
one meeting of that row's programs. So a part's memory must not be written again before another
meeting, which two buffers in turn give.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..launch.dependent import enter, options
from .peers import Peers, add_and_norm, flags_of, meet, padded, sum_of_row


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
    theirs, own = flags_of(flags_at_ptr, row, rank, SIZE, LANES)
    enter(PDL)
    residual = tl.load(residual_ptr + row * residual_stride + cols, mask=mask, other=0.0)
    number = tl.load(meetings_ptr + row) + 1
    meet(theirs, own, number, SIZE, LANES)
    tl.store(meetings_ptr + row, number)
    KIND: tl.constexpr = total_ptr.dtype.element_ty
    first = row * size
    total = sum_of_row(
        part_0,
        part_1,
        part_2,
        part_3,
        part_4,
        part_5,
        part_6,
        part_7,
        first,
        cols,
        mask,
        KIND,
        SIZE,
    )
    rounded, out = add_and_norm(total, residual, weight, size, eps, KIND)
    tl.store(total_ptr + first + cols, rounded, mask=mask)
    tl.store(out_ptr + first + cols, out, mask=mask)


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
        *padded(peers.parts_at),
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
