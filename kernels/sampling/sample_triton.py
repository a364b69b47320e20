"""Sampling without sorting, in four launches that wait for nothing and fit in a CUDA graph.

1. Every row and block of the vocabulary: maximum and sum of exponentials of the scaled logits;
   for rows without a filter also the best score: the logit where greedy, else scaled logit plus
   Gumbel noise. A greedy or unfiltered batch reads its logits once.
2. Every row with a filter: the exact threshold (see filter_triton.py). Others leave at once.
3. Every filtered row and block: best score among the values at or above the threshold; blocks
   without such a value skip the noise.
4. Every row: the best block; the least token id wins ties, as in argmax.

NaN counts as -inf, so that a broken row gets some token of the vocabulary.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .filter_triton import _key, _no_nan, _value, search
from .noise_triton import gumbel, noise_bits, row_keys
from .reference import GREEDY_TEMPERATURE

BLOCK = 4096
SCAN_BLOCK = 1024
#: Values of a bracket that are worth copying out of the row.
CAPACITY = 4096

_GREEDY = tl.constexpr(GREEDY_TEMPERATURE)

#: One number a row or block, in slices of any alignment: one compiled variant serves them all.
_ANY_ALIGNMENT = [
    *("temperature_ptr", "top_k_ptr", "top_p_ptr", "min_p_ptr", "seed_ptr", "position_ptr"),
    *("max_ptr", "sum_ptr", "best_ptr", "best_id_ptr", "threshold_ptr", "out_ptr"),
]


@triton.jit
def _is_filtered(temperature, top_k, top_p, min_p, vocab):
    by_k = (top_k > 0) & (top_k < vocab)
    return (temperature >= _GREEDY) & (by_k | (top_p < 1.0) | (min_p > 0.0))


@triton.jit
def _load_row(temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, row):
    temperature = tl.load(temperature_ptr + row).to(tl.float32)
    top_p = tl.load(top_p_ptr + row).to(tl.float32)
    return temperature, tl.load(top_k_ptr + row), top_p, tl.load(min_p_ptr + row).to(tl.float32)


@triton.jit
def _store_best(score, token, best_ptr, best_id_ptr, at):
    best, index = tl.max(score, axis=0, return_indices=True)
    tl.store(best_ptr + at, best)
    tl.store(best_id_ptr + at, tl.min(token, axis=0) + index)


@triton.jit(do_not_specialize_on_alignment=_ANY_ALIGNMENT)
def _stats_kernel(
    logits_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    seed_ptr,
    position_ptr,
    max_ptr,
    sum_ptr,
    best_ptr,
    best_id_ptr,
    logits_stride,
    vocab,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    at = row * tl.num_programs(1) + tl.program_id(1)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = token < vocab
    temperature, top_k, top_p, min_p = _load_row(
        temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, row
    )
    x = tl.load(logits_ptr + row * logits_stride + token, mask=mask, other=-float("inf"))
    x = _no_nan(x.to(tl.float32))
    if temperature < _GREEDY:
        _store_best(x, token, best_ptr, best_id_ptr, at)
    else:
        x = _no_nan(x * (1.0 / temperature))
        if _is_filtered(temperature, top_k, top_p, min_p, vocab):
            top = tl.max(x, axis=0)
            # A block may be forbidden as a whole; its sum is 0 then.
            safe = tl.where(top > -float("inf"), top, 0.0)
            tl.store(max_ptr + at, top)
            tl.store(sum_ptr + at, tl.sum(tl.exp(x - safe), axis=0))
        else:
            first, second = row_keys(tl.load(seed_ptr + row), tl.load(position_ptr + row))
            score = x + gumbel(noise_bits(first, second, token))
            _store_best(score, token, best_ptr, best_id_ptr, at)


@triton.jit(do_not_specialize_on_alignment=_ANY_ALIGNMENT)
def _threshold_kernel(
    logits_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    max_ptr,
    sum_ptr,
    threshold_ptr,
    scratch_ptr,
    logits_stride,
    vocab,
    splits,
    CAPACITY: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    temperature, top_k, top_p, min_p = _load_row(
        temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, row
    )
    if _is_filtered(temperature, top_k, top_p, min_p, vocab):
        split = tl.arange(0, BLOCK_SPLITS)
        tops = tl.load(max_ptr + row * splits + split, mask=split < splits, other=-float("inf"))
        sums = tl.load(sum_ptr + row * splits + split, mask=split < splits, other=0.0)
        # Adding zero: the search knows no -0.
        top = tl.max(tops, axis=0) + 0.0
        mass = tl.sum(sums * tl.exp(tops - top), axis=0)
        source = logits_ptr + row * logits_stride
        scratch = scratch_ptr + row * CAPACITY
        factor = 1.0 / temperature
        low = _key(top * 0.0 - float("inf"))
        count = low.to(tl.int32) * 0 + vocab
        if (top_k > 0) & (top_k < vocab):
            low, count, mass = search(
                source,
                vocab,
                factor,
                top,
                mass,
                low,
                count,
                top_k.to(tl.float32),
                scratch,
                True,
                CAPACITY,
                4,
                8,
                BLOCK,
            )
        if top_p < 1.0:
            target = tl.maximum(top_p * mass, 1e-30)
            low, count, mass = search(
                source,
                vocab,
                factor,
                top,
                mass,
                low,
                count,
                target,
                scratch,
                False,
                CAPACITY,
                4,
                8,
                BLOCK,
            )
        threshold = _value(low)
        if min_p > 0.0:
            threshold = tl.maximum(threshold, top + tl.log(tl.minimum(min_p, 1.0)))
        tl.store(threshold_ptr + row, threshold)


@triton.jit(do_not_specialize_on_alignment=_ANY_ALIGNMENT)
def _filtered_kernel(
    logits_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    seed_ptr,
    position_ptr,
    threshold_ptr,
    best_ptr,
    best_id_ptr,
    logits_stride,
    vocab,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    temperature, top_k, top_p, min_p = _load_row(
        temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, row
    )
    if _is_filtered(temperature, top_k, top_p, min_p, vocab):
        at = row * tl.num_programs(1) + tl.program_id(1)
        token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(
            logits_ptr + row * logits_stride + token, mask=token < vocab, other=-float("inf")
        )
        x = x.to(tl.float32) * (1.0 / temperature)
        kept = x >= tl.load(threshold_ptr + row)
        if tl.max(kept.to(tl.int32), axis=0) > 0:
            first, second = row_keys(tl.load(seed_ptr + row), tl.load(position_ptr + row))
            score = x + gumbel(noise_bits(first, second, token))
            score = tl.where(kept, score, -float("inf"))
            _store_best(score, token, best_ptr, best_id_ptr, at)
        else:
            tl.store(best_ptr + at, -float("inf"))
            tl.store(best_id_ptr + at, tl.program_id(1) * BLOCK)


@triton.jit(do_not_specialize_on_alignment=_ANY_ALIGNMENT)
def _choose_kernel(best_ptr, best_id_ptr, out_ptr, splits, BLOCK_SPLITS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, BLOCK_SPLITS)
    best = tl.load(best_ptr + row * splits + split, mask=split < splits, other=-float("inf"))
    winner = tl.argmax(best, axis=0)
    tl.store(out_ptr + row, tl.load(best_id_ptr + row * splits + winner).to(tl.int64))


def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor:
    """See reference.sample; the vocabulary must be contiguous in logits [B, V]."""
    batch, vocab = logits.shape
    device = logits.device
    out = torch.empty(batch, dtype=torch.int64, device=device)
    if batch == 0:
        return out
    splits = triton.cdiv(vocab, BLOCK)
    stats = torch.empty((3, batch, splits), dtype=torch.float32, device=device)
    best_id = torch.empty((batch, splits), dtype=torch.int32, device=device)
    threshold = torch.empty(batch, dtype=torch.float32, device=device)
    scratch = torch.empty((batch, CAPACITY), dtype=torch.float32, device=device)
    per_row = (temperature, top_k, top_p, min_p, seeds, positions)
    *params, seeds, positions = (tensor.contiguous() for tensor in per_row)
    grid = (batch, splits)
    block_splits = triton.next_power_of_2(splits)
    _stats_kernel[grid](
        logits,
        *params,
        seeds,
        positions,
        *stats,
        best_id,
        logits.stride(0),
        vocab,
        BLOCK=BLOCK,
        num_warps=8,
    )
    _threshold_kernel[(batch,)](
        logits,
        *params,
        stats[0],
        stats[1],
        threshold,
        scratch,
        logits.stride(0),
        vocab,
        splits,
        CAPACITY=CAPACITY,
        BLOCK=SCAN_BLOCK,
        BLOCK_SPLITS=block_splits,
        num_warps=16,
    )
    _filtered_kernel[grid](
        logits,
        *params,
        seeds,
        positions,
        threshold,
        stats[2],
        best_id,
        logits.stride(0),
        vocab,
        BLOCK=BLOCK,
        num_warps=8,
    )
    _choose_kernel[(batch,)](stats[2], best_id, out, splits, BLOCK_SPLITS=block_splits, num_warps=1)
    return out
