"""Penalties and logit bias, in place."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 2048
BLOCK_BIAS = 256


# One number a row, in slices of any alignment: one variant for all.
@triton.jit(do_not_specialize_on_alignment=["frequency_ptr", "presence_ptr", "repetition_ptr"])
def _penalties_kernel(
    logits_ptr,
    counts_ptr,
    prompt_ptr,
    frequency_ptr,
    presence_ptr,
    repetition_ptr,
    logits_stride,
    counts_stride,
    prompt_stride,
    vocab,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    frequency = tl.load(frequency_ptr + row).to(tl.float32)
    presence = tl.load(presence_ptr + row).to(tl.float32)
    repetition = tl.load(repetition_ptr + row).to(tl.float32)
    # Most rows ask for none: they cost three loads instead of the row.
    if (frequency == 0.0) & (presence == 0.0) & (repetition == 1.0):
        return
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = token < vocab
    count = tl.load(counts_ptr + row * counts_stride + token, mask=mask, other=0)
    in_prompt = tl.load(prompt_ptr + row * prompt_stride + token, mask=mask, other=0)
    x = tl.load(logits_ptr + row * logits_stride + token, mask=mask, other=0.0).to(tl.float32)
    repeated = tl.where((count > 0) | (in_prompt != 0), repetition, 1.0)
    x = tl.where(x > 0, x / repeated, x * repeated)
    x = x - frequency * count.to(tl.float32)
    x = x - tl.where(count > 0, presence, 0.0)
    tl.store(logits_ptr + row * logits_stride + token, x.to(logits_ptr.dtype.element_ty), mask=mask)


@triton.jit(
    do_not_specialize=["entries"],
    do_not_specialize_on_alignment=["rows_ptr", "ids_ptr", "bias_ptr"],
)
def _logit_bias_kernel(
    logits_ptr, rows_ptr, ids_ptr, bias_ptr, logits_stride, entries, BLOCK: tl.constexpr
):
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = entry < entries
    row = tl.load(rows_ptr + entry, mask=mask, other=-1).to(tl.int64)
    token = tl.load(ids_ptr + entry, mask=mask, other=0).to(tl.int64)
    bias = tl.load(bias_ptr + entry, mask=mask, other=0.0).to(tl.float32)
    mask = mask & (row >= 0)
    target = logits_ptr + row * logits_stride + token
    x = tl.load(target, mask=mask, other=0.0).to(tl.float32) + bias
    tl.store(target, x.to(logits_ptr.dtype.element_ty), mask=mask)


def apply_penalties(
    logits: torch.Tensor,
    output_counts: torch.Tensor,
    prompt_mask: torch.Tensor,
    frequency: torch.Tensor,
    presence: torch.Tensor,
    repetition: torch.Tensor,
) -> torch.Tensor:
    """See reference.apply_penalties."""
    batch, vocab = logits.shape
    if batch == 0:
        return logits
    _penalties_kernel[(batch, triton.cdiv(vocab, BLOCK))](
        logits,
        output_counts,
        prompt_mask.view(torch.uint8),
        frequency.contiguous(),
        presence.contiguous(),
        repetition.contiguous(),
        logits.stride(0),
        output_counts.stride(0),
        prompt_mask.stride(0),
        vocab,
        BLOCK=BLOCK,
        num_warps=4,
    )
    return logits


def apply_logit_bias(
    logits: torch.Tensor, rows: torch.Tensor, token_ids: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """See reference.apply_logit_bias."""
    entries = rows.shape[0]
    if entries:
        _logit_bias_kernel[(triton.cdiv(entries, BLOCK_BIAS),)](
            logits,
            rows.contiguous(),
            token_ids.contiguous(),
            bias.contiguous(),
            logits.stride(0),
            entries,
            BLOCK=BLOCK_BIAS,
            num_warps=4,
        )
    return logits
