"""Greedy tokens in two launches: the best of each block of the vocabulary, then of the blocks.

NaN counts as -inf, so that a broken row gets some token of the vocabulary (0 where all is NaN).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..launch.dependent import enter, options

BLOCK = 4096


@triton.jit
def _block_kernel(
    logits_ptr, best_ptr, best_id_ptr, logits_stride, vocab, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    enter(PDL)
    row = tl.program_id(0).to(tl.int64)
    at = row * tl.num_programs(1) + tl.program_id(1)
    first = tl.program_id(1) * BLOCK
    token = first + tl.arange(0, BLOCK)
    x = tl.load(logits_ptr + row * logits_stride + token, mask=token < vocab, other=-float("inf"))
    x = x.to(tl.float32)
    # Beside NaN a maximum may be that of the padding, whose ids nobody can look up.
    x = tl.where(x == x, x, -float("inf"))
    best, index = tl.max(x, axis=0, return_indices=True)
    tl.store(best_ptr + at, best)
    tl.store(best_id_ptr + at, first + index)


# Slots and positions may be slices of any alignment: one variant for all.
@triton.jit(
    do_not_specialize=["out_stride"],
    do_not_specialize_on_alignment=["slots_ptr", "positions_ptr", "turn_ptr", "out_ptr"],
)
def _choose_kernel(
    best_ptr,
    best_id_ptr,
    out_ptr,
    token_buffer_ptr,
    slots_ptr,
    positions_ptr,
    turn_ptr,
    tokens_stride,
    out_stride,
    splits,
    STORES: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    PDL: tl.constexpr,
):
    enter(PDL)
    row = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, BLOCK_SPLITS)
    best = tl.load(best_ptr + row * splits + split, mask=split < splits, other=-float("inf"))
    winner = tl.argmax(best, axis=0)
    token = tl.load(best_id_ptr + row * splits + winner)
    if STORES:
        turn = tl.load(turn_ptr).to(tl.int64)
        tl.store(out_ptr + turn * out_stride + row, token.to(tl.int64))
        slot = tl.load(slots_ptr + row).to(tl.int64)
        at = slot * tokens_stride + tl.load(positions_ptr + row)
        tl.store(token_buffer_ptr + at, token, mask=slot >= 0)
    else:
        tl.store(out_ptr + row, token.to(tl.int64))


def _blocks(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(best fp32 [B, splits], its token id int32) of every block of logits [B, V]."""
    batch, vocab = logits.shape
    splits = triton.cdiv(vocab, BLOCK)
    best = torch.empty((batch, splits), dtype=torch.float32, device=logits.device)
    best_id = torch.empty((batch, splits), dtype=torch.int32, device=logits.device)
    _block_kernel[(batch, splits)](
        logits, best, best_id, logits.stride(0), vocab, BLOCK=BLOCK, num_warps=4, **options(logits)
    )
    return best, best_id


def argmax(logits: torch.Tensor) -> torch.Tensor:
    """See reference.argmax; the vocabulary must be contiguous in logits."""
    out = torch.empty(logits.shape[0], dtype=torch.int64, device=logits.device)
    if logits.shape[0] == 0:
        return out
    best, best_id = _blocks(logits)
    splits = best.shape[1]
    _choose_kernel[(logits.shape[0],)](
        best,
        best_id,
        out,
        out,
        out,
        out,
        out,
        0,
        0,
        splits,
        STORES=False,
        BLOCK_SPLITS=triton.next_power_of_2(splits),
        num_warps=1,
        **options(logits),
    )
    return out


def store_argmax(
    logits: torch.Tensor,
    token_buffer: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    outputs: torch.Tensor,
    turn: torch.Tensor,
) -> None:
    """See reference.store_argmax; the vocabulary must be contiguous in logits."""
    if logits.shape[0] == 0:
        return
    best, best_id = _blocks(logits)
    splits = best.shape[1]
    _choose_kernel[(logits.shape[0],)](
        best,
        best_id,
        outputs,
        token_buffer,
        slots,
        positions,
        turn,
        token_buffer.stride(0),
        outputs.stride(0),
        splits,
        STORES=True,
        BLOCK_SPLITS=triton.next_power_of_2(splits),
        num_warps=1,
        **options(logits),
    )
