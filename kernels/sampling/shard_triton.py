"""Choosing tokens where each rank holds a part of the vocabulary: the best of each, then of all.

A part is reduced to one pair a row, (score, token id), in two launches; the pairs of all ranks,
brought together by the caller, to one token in another. Nothing waits for the host. NaN counts as
-inf, as everywhere: beside it a maximum may be that of the padding, which no part holds.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..launch.dependent import enter, options
from .filter_triton import _no_nan
from .noise_triton import gumbel, noise_bits, row_keys
from .reference import GREEDY_TEMPERATURE

BLOCK = 4096
_GREEDY = tl.constexpr(GREEDY_TEMPERATURE)


@triton.jit(do_not_specialize_on_alignment=["temperature_ptr", "seed_ptr", "position_ptr"])
def _block_kernel(
    logits_ptr,
    temperature_ptr,
    seed_ptr,
    position_ptr,
    best_ptr,
    best_id_ptr,
    logits_stride,
    size,
    first_id,
    DRAWS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    enter(PDL)
    row = tl.program_id(0).to(tl.int64)
    at = row * tl.num_programs(1) + tl.program_id(1)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits_ptr + row * logits_stride + column, mask=column < size, other=-float("inf"))
    x = x.to(tl.float32)
    if DRAWS:
        temperature = tl.load(temperature_ptr + row).to(tl.float32)
        if temperature >= _GREEDY:
            first, second = row_keys(tl.load(seed_ptr + row), tl.load(position_ptr + row))
            x = x * (1.0 / temperature) + gumbel(noise_bits(first, second, first_id + column))
    best, index = tl.max(_no_nan(x), axis=0, return_indices=True)
    tl.store(best_ptr + at, best)
    # A part without tokens has no last one.
    column = tl.minimum(tl.program_id(1) * BLOCK + index, tl.maximum(size - 1, 0))
    tl.store(best_id_ptr + at, first_id + column)


@triton.jit
def _pair_kernel(
    best_ptr, best_id_ptr, pairs_ptr, splits, BLOCK_SPLITS: tl.constexpr, PDL: tl.constexpr
):
    enter(PDL)
    row = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, BLOCK_SPLITS)
    best = tl.load(best_ptr + row * splits + split, mask=split < splits, other=-float("inf"))
    winner = tl.argmax(best, axis=0)
    tl.store(pairs_ptr + row * 2, tl.load(best_ptr + row * splits + winner))
    token = tl.load(best_id_ptr + row * splits + winner)
    tl.store(pairs_ptr + row * 2 + 1, token.to(tl.float32))


# Slots and positions may be slices of any alignment, rows any number: one variant for all.
@triton.jit(
    do_not_specialize=["rows", "out_stride"],
    do_not_specialize_on_alignment=["slots_ptr", "positions_ptr", "turn_ptr", "out_ptr"],
)
def _choose_kernel(
    pairs_ptr,
    out_ptr,
    token_buffer_ptr,
    slots_ptr,
    positions_ptr,
    turn_ptr,
    tokens_stride,
    out_stride,
    rows,
    parts,
    STORES: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    PDL: tl.constexpr,
):
    enter(PDL)
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, BLOCK_PARTS)
    at = pairs_ptr + (part * rows + row) * 2
    best = tl.load(at, mask=part < parts, other=-float("inf"))
    winner = tl.argmax(best, axis=0)
    token = tl.load(pairs_ptr + (winner * rows + row) * 2 + 1).to(tl.int32)
    if STORES:
        turn = tl.load(turn_ptr).to(tl.int64)
        tl.store(out_ptr + turn * out_stride + row, token.to(tl.int64))
        slot = tl.load(slots_ptr + row).to(tl.int64)
        to = slot * tokens_stride + tl.load(positions_ptr + row)
        tl.store(token_buffer_ptr + to, token, mask=slot >= 0)
    else:
        tl.store(out_ptr + row, token.to(tl.int64))


def best_of_part(
    logits: torch.Tensor,
    first_id: int,
    size: int,
    draw: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None,
) -> torch.Tensor:
    """See reference.best_of_part; the vocabulary must be contiguous in logits."""
    batch = logits.shape[0]
    splits = max(1, triton.cdiv(size, BLOCK))
    best = torch.empty((batch, splits), dtype=torch.float32, device=logits.device)
    best_id = torch.empty((batch, splits), dtype=torch.int32, device=logits.device)
    pairs = torch.empty((batch, 2), dtype=torch.float32, device=logits.device)
    if batch == 0:
        return pairs
    temperature, seeds, positions = (best, best, best) if draw is None else draw
    _block_kernel[(batch, splits)](
        logits,
        temperature.contiguous(),
        seeds.contiguous(),
        positions.contiguous(),
        best,
        best_id,
        logits.stride(0),
        size,
        first_id,
        DRAWS=draw is not None,
        BLOCK=BLOCK,
        num_warps=4 if draw is None else 8,
        **options(logits),
    )
    _pair_kernel[(batch,)](
        best,
        best_id,
        pairs,
        splits,
        BLOCK_SPLITS=triton.next_power_of_2(splits),
        num_warps=1,
        **options(logits),
    )
    return pairs


def choose(pairs: torch.Tensor) -> torch.Tensor:
    """See reference.choose."""
    out = torch.empty(pairs.shape[1], dtype=torch.int64, device=pairs.device)
    _launch_choose(pairs, out, (out, out, out, out), 0, 0, stores=False)
    return out


def store_choice(
    pairs: torch.Tensor,
    token_buffer: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    outputs: torch.Tensor,
    turn: torch.Tensor,
) -> None:
    """See reference.store_choice."""
    places = (token_buffer, slots, positions, turn)
    _launch_choose(pairs, outputs, places, token_buffer.stride(0), outputs.stride(0), stores=True)


def _launch_choose(
    pairs: torch.Tensor,
    out: torch.Tensor,
    places: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    tokens_stride: int,
    out_stride: int,
    *,
    stores: bool,
) -> None:
    parts, rows, _ = pairs.shape
    if rows == 0:
        return
    _choose_kernel[(rows,)](
        pairs,
        out,
        *places,
        tokens_stride,
        out_stride,
        rows,
        parts,
        STORES=stores,
        BLOCK_PARTS=triton.next_power_of_2(parts),
        num_warps=1,
        **options(pairs),
    )
