"""Tokens, their experts and their weights as rows of bytes, once for each rank that gets them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .reference import row_layout

BLOCK = 1024


@triton.jit(do_not_specialize=["num_rows", "capacity"])
def _pack_kernel(
    hidden_ptr,
    weights_ptr,
    ids_ptr,
    out_ptr,
    num_rows,
    capacity,
    hidden_words,
    weights_at,
    row_words,
    K: tl.constexpr,
    COPIES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    # A row beyond the tokens is empty: zeros, and no expert.
    is_token = row + at * 0 < num_rows
    place = at - weights_at
    hidden = tl.load(
        hidden_ptr + row * hidden_words + at, mask=(at < hidden_words) & is_token, other=0
    )
    weight = tl.load(
        weights_ptr + row * K + place, mask=(place >= 0) & (place < K) & is_token, other=0
    )
    is_id = (place >= K) & (place < 2 * K)
    expert = tl.load(ids_ptr + row * K + place - K, mask=is_id & is_token, other=-1)
    word = tl.where(is_id, expert, tl.where(place >= 0, weight, hidden))
    for copy in tl.static_range(COPIES):
        to = out_ptr + (copy * capacity + row) * row_words + at
        tl.store(to, word, mask=at < row_words)


def _words(x: torch.Tensor) -> torch.Tensor:
    # What is empty may have strides that no view of other elements takes.
    return x.contiguous().view(torch.int32) if len(x) else x.new_empty(0, dtype=torch.int32)


def pack(
    hidden: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, capacity: int, copies: int
) -> torch.Tensor:
    """See reference.pack; a token's hidden state must be a whole number of 4 bytes."""
    num_rows, k = ids.shape
    weights_at, row_bytes = row_layout(hidden.shape[1], k, hidden.dtype)
    out = torch.empty(copies, capacity, row_bytes, dtype=torch.uint8, device=hidden.device)
    if capacity == 0:
        return out
    words = row_bytes // 4
    block = min(BLOCK, triton.next_power_of_2(words))
    _pack_kernel[(capacity, triton.cdiv(words, block))](
        _words(hidden),
        _words(weights),
        _words(ids),
        out.view(torch.int32),
        num_rows,
        capacity,
        hidden.shape[1] * hidden.element_size() // 4,
        weights_at // 4,
        words,
        K=k,
        COPIES=copies,
        BLOCK=block,
    )
    return out
