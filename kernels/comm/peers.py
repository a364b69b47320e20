"""What kernels of several ranks share: each other's memory, meetings in it, and a row's sum.

Before a program reads what other ranks wrote, it meets the programs of the same number there: it
tells them that it came, and waits for their word, a number that grows with every meeting, written
into flags. Reading a flag back to zero would take two meetings where one does.

Plain loads, stores and atomics of the system's scope over NVLink; its multicast is not used.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

#: Programs of one call: each has flags of its own.
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


def padded(addresses: tuple[int, ...]) -> tuple[int, ...]:
    """One for each of MAX_RANKS; those of no rank are never looked at."""
    return addresses + (0,) * (MAX_RANKS - len(addresses))


@triton.jit
def flags_of(flags_at_ptr, program, rank, SIZE: tl.constexpr, LANES: tl.constexpr):
    """(where this program tells each rank, where each rank tells it).

    Addresses never change: they may be read before the kernels before this one are done.
    """
    peer = tl.arange(0, LANES)
    at = tl.load(flags_at_ptr + peer, mask=peer < SIZE, other=0).to(tl.pointer_type(tl.int32))
    own = tl.load(flags_at_ptr + rank).to(tl.pointer_type(tl.int32))
    return at + program * SIZE + rank, own + program * SIZE + peer


@triton.jit
def meet(theirs, own, number, SIZE: tl.constexpr, LANES: tl.constexpr):
    """Return when this program of every rank has come to the meeting of that number.

    What a rank wrote before, each can read then.
    """
    exists = tl.arange(0, LANES) < SIZE
    tl.atomic_xchg(theirs, number, mask=exists, sem="release", scope="sys")
    late = 1
    while late > 0:
        seen = tl.atomic_add(
            own, tl.zeros([LANES], tl.int32), mask=exists, sem="acquire", scope="sys"
        )
        # The difference survives the number's wrapping.
        late = tl.max(tl.where(exists & (seen - number < 0), 1, 0), axis=0)
    tl.debug_barrier()


@triton.jit
def _load(address, first, cols, mask, KIND: tl.constexpr):
    """A rank's row in fp32, past L1, which may hold what stood there two calls ago."""
    part = tl.multiple_of(address.to(tl.int64).to(tl.pointer_type(KIND)), 16)
    x = tl.load(part + first + cols, mask=mask, other=0.0, cache_modifier=".cg")
    return x.to(tl.float32)


@triton.jit
def sum_of_row(
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
    KIND: tl.constexpr,
    SIZE: tl.constexpr,
):
    """fp32, in the order of the ranks.  first: the row's first element in every part."""
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
    return total


@triton.jit
def add_and_norm(total, residual, weight, size, eps, KIND: tl.constexpr):
    """(sum with the residual, rounded; its norm): what sums differently must not differ here."""
    rounded = (total + residual.to(tl.float32)).to(KIND)
    x = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / size + eps)
    return rounded, (x * scale * weight).to(KIND)
