"""Sort the (token, expert) pairs by expert, each expert's padded to whole blocks of rows.

One program an expert: it counts its pairs, and in a second launch, when all counts are known,
writes them where they belong. No atomics, so the order is the same every time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 1024


@triton.jit(do_not_specialize=["num_pairs"])
def _count_kernel(ids_ptr, counts_ptr, num_pairs, first_expert, BLOCK: tl.constexpr):
    expert = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    count = tl.zeros([BLOCK], tl.int32)
    for start in range(0, num_pairs, BLOCK):
        ids = tl.load(ids_ptr + start + at, mask=start + at < num_pairs, other=-1)
        count += (ids == expert + first_expert).to(tl.int32)
    tl.store(counts_ptr + expert, tl.sum(count, 0))


@triton.jit(do_not_specialize=["num_pairs", "num_blocks"])
def _place_kernel(
    ids_ptr,
    counts_ptr,
    pairs_ptr,
    experts_ptr,
    num_pairs,
    num_experts,
    first_expert,
    num_blocks,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    expert = tl.program_id(0)
    others = tl.arange(0, BLOCK_E)
    counts = tl.load(counts_ptr + others, mask=others < num_experts, other=0)
    blocks = (counts + ROWS - 1) // ROWS
    first = tl.sum(tl.where(others < expert, blocks, 0), 0)
    own = tl.sum(tl.where(others == expert, blocks, 0), 0)
    at = tl.arange(0, BLOCK)
    written = 0
    for start in range(0, num_pairs, BLOCK):
        ids = tl.load(ids_ptr + start + at, mask=start + at < num_pairs, other=-1)
        mine = ids == expert + first_expert
        place = written + tl.cumsum(mine.to(tl.int32), 0) - 1
        tl.store(pairs_ptr + first * ROWS + place, start + at, mask=mine)
        written += tl.sum(mine.to(tl.int32), 0)
    # What is left of the last block is padding.
    for start in range(written, own * ROWS, BLOCK):
        tl.store(pairs_ptr + first * ROWS + start + at, num_pairs, mask=start + at < own * ROWS)
    for start in range(0, own, BLOCK):
        tl.store(experts_ptr + first + start + at, expert, mask=start + at < own)
    if expert == num_experts - 1:
        for start in range(first + own, num_blocks, BLOCK):
            tl.store(experts_ptr + start + at, -1, mask=start + at < num_blocks)


def align(
    ids: torch.Tensor, rows: int, num_held: int, first_expert: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """ids: int32 [num_tokens, k].  rows: of a block.  num_held, first_expert: whose pairs count.

    Returns (pairs int32 [num_blocks * rows], experts int32 [num_blocks]): block b holds pairs
    (index into ids.flatten(), or ids.numel() for padding) of expert experts[b], counted from
    first_expert; -1 where there is no block. num_blocks is the most there can be, so that nothing
    depends on the ids but their values.
    """
    num_pairs = ids.numel()
    num_blocks = num_pairs // rows + min(num_pairs, num_held)
    counts = torch.empty(num_held, dtype=torch.int32, device=ids.device)
    pairs = torch.empty(num_blocks * rows, dtype=torch.int32, device=ids.device)
    experts = torch.empty(num_blocks, dtype=torch.int32, device=ids.device)
    block = min(BLOCK, triton.next_power_of_2(max(num_pairs, 16)))
    _count_kernel[(num_held,)](ids, counts, num_pairs, first_expert, BLOCK=block)
    _place_kernel[(num_held,)](
        ids,
        counts,
        pairs,
        experts,
        num_pairs,
        num_held,
        first_expert,
        num_blocks,
        ROWS=rows,
        BLOCK=block,
        BLOCK_E=triton.next_power_of_2(num_held),
    )
    return pairs, experts
