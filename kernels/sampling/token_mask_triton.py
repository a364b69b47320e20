"""Forbids tokens by a mask of one bit each, in place."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 4096


@triton.jit(do_not_specialize_on_alignment=["mask_ptr", "rows_ptr"])
def _token_mask_kernel(
    logits_ptr, mask_ptr, rows_ptr, logits_stride, mask_stride, vocab, BLOCK: tl.constexpr
):
    entry = tl.program_id(0).to(tl.int64)
    row = tl.load(rows_ptr + entry).to(tl.int64)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = token < vocab
    word = tl.load(mask_ptr + entry * mask_stride + token // 32, mask=inside, other=-1)
    forbidden = ((word >> (token % 32)) & 1) == 0
    lowest = tl.full([BLOCK], -float("inf"), tl.float32).to(logits_ptr.dtype.element_ty)
    tl.store(logits_ptr + row * logits_stride + token, lowest, mask=inside & forbidden)


def apply_token_mask(logits: torch.Tensor, mask: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """See reference.apply_token_mask."""
    entries, vocab = rows.shape[0], logits.shape[1]
    if entries:
        _token_mask_kernel[(entries, triton.cdiv(vocab, BLOCK))](
            logits,
            mask,
            rows.contiguous(),
            logits.stride(0),
            mask.stride(0),
            vocab,
            BLOCK=BLOCK,
            num_warps=4,
        )
    return logits
