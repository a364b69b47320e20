"""All-reduce, residual add and RMSNorm in one launch, for sums that are too large for one-shot.

Reduce-scatter, norm, push: each rank sums the rows that are its own (row r is of rank r % size),
adds the residual, norms, and stores the normed row into the memory of every rank. Program g of each
rank has the g-th of that rank's rows; those of one number meet twice, first to know that the parts
are written, then that the normed rows are. The same bits everywhere, since they are copies, and
those of the one-shot kernel. No two ranks' programs wait for each other in another order, and with
rows / size of them a rank runs all at once.

Why nobody overwrites what another one reads:
- A rank's program says that it came only after every kernel which that rank launched before is
  done (PDL's wait), and only then do others store a row into that rank's memory. So whatever was
  launched ahead of a call has read what it wants there; and what is launched after it may read its
  outputs, until this rank's next call with the same memory. Of two memories in turn that is the
  second sum from here, in this step or in the next, eager or in whatever graph: turns only make
  outputs live longer, no order of turns can make two ranks collide.
- Parts: a program ends after all ranks have said that their rows of its number are pushed, so that
  a rank whose kernel is done has had its part read. For a part that one-shot read, either kernel's
  meetings in the next sum say as much; so turns and `settle` are as they were.
- Meetings are counted by program, by this kernel (two a call) and the one-shot one (one) in the
  same numbers; all ranks take the same one for the same sum.

The total is not pushed unless asked for: the next sum reads of it the rows that are the rank's own.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..launch.dependent import enter, options
from .peers import Peers, add_and_norm, flags_of, meet, padded, sum_of_row


class Outputs(NamedTuple):
    """memory: this rank's [2, rows, H], contiguous: normed rows, and totals where they are pushed.
    at: address of each rank's memory, a multiple of 16."""

    memory: torch.Tensor
    at: tuple[int, ...]


@triton.jit
def _store(address, first, cols, mask, x, EXISTS: tl.constexpr):
    if EXISTS:
        out = tl.multiple_of(address.to(tl.int64).to(tl.pointer_type(x.dtype)), 16)
        tl.store(out + first + cols, x, mask=mask)


@triton.jit
def _push(
    out_0, out_1, out_2, out_3, out_4, out_5, out_6, out_7, first, cols, mask, x, SIZE: tl.constexpr
):
    _store(out_0, first, cols, mask, x, True)
    _store(out_1, first, cols, mask, x, True)
    _store(out_2, first, cols, mask, x, SIZE > 2)
    _store(out_3, first, cols, mask, x, SIZE > 3)
    _store(out_4, first, cols, mask, x, SIZE > 4)
    _store(out_5, first, cols, mask, x, SIZE > 5)
    _store(out_6, first, cols, mask, x, SIZE > 6)
    _store(out_7, first, cols, mask, x, SIZE > 7)


@triton.jit(do_not_specialize=["rows"])
def _push_kernel(
    part_0,
    part_1,
    part_2,
    part_3,
    part_4,
    part_5,
    part_6,
    part_7,
    out_0,
    out_1,
    out_2,
    out_3,
    out_4,
    out_5,
    out_6,
    out_7,
    flags_at_ptr,
    meetings_ptr,
    residual_ptr,
    weight_ptr,
    total_ptr,
    residual_stride,
    rows,
    size,
    eps,
    rank,
    SIZE: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
    PDL: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    row = program * SIZE + rank
    cols = tl.arange(0, BLOCK)
    # The weight never changes: it may be read before the kernels before this one are done.
    weight = tl.load(weight_ptr + cols, mask=cols < size, other=0.0).to(tl.float32)
    theirs, own = flags_of(flags_at_ptr, program, rank, SIZE, LANES)
    # The last of some ranks' programs have no row, yet others wait for their word.
    mask = cols < tl.where(row < rows, size, 0)
    enter(PDL)
    residual = tl.load(residual_ptr + row * residual_stride + cols, mask=mask, other=0.0)
    number = tl.load(meetings_ptr + program) + 1
    meet(theirs, own, number, SIZE, LANES)
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
    _push(out_0, out_1, out_2, out_3, out_4, out_5, out_6, out_7, first, cols, mask, out, SIZE)
    if WHOLE:
        first += rows.to(tl.int64) * size
        _push(
            out_0, out_1, out_2, out_3, out_4, out_5, out_6, out_7, first, cols, mask, rounded, SIZE
        )
    else:
        tl.store(total_ptr + first + cols, rounded, mask=mask)
    # All threads' stores are before the word of the one that tells of them.
    tl.debug_barrier()
    meet(theirs, own, number + 1, SIZE, LANES)
    tl.store(meetings_ptr + program, number + 1)


def push_sum_norm(
    peers: Peers,
    outputs: Outputs,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    whole: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See reference.sum_add_rms_norm, and sum_add_rms_norm_triton for what must hold.

    residual: [rows, H], of which the rows rank, rank + size, ... are read.  Returns the normed rows
    in outputs.memory, and the total: `whole`, in outputs.memory too, or just the rows that are this
    rank's own, the others undefined.
    """
    rows, size = residual.shape
    normed, total = outputs.memory
    if rows == 0:
        return normed, total
    if not whole:
        total = torch.empty_like(normed)
    if residual.stride(1) != 1:
        residual = residual.contiguous()
    block = triton.next_power_of_2(size)
    # Each begins with another rank, lest all store into the same one's memory at once.
    turned = outputs.at[peers.rank + 1 :] + outputs.at[: peers.rank + 1]
    _push_kernel[(triton.cdiv(rows, peers.size),)](
        *padded(peers.parts_at),
        *padded(turned),
        peers.flags_at,
        peers.meetings,
        residual,
        weight,
        total,
        residual.stride(0),
        rows,
        size,
        eps,
        peers.rank,
        SIZE=peers.size,
        LANES=triton.next_power_of_2(peers.size),
        BLOCK=block,
        WHOLE=whole,
        num_warps=min(32, max(1, block // 256)),
        **options(residual),
    )
    return normed, total
