"""From the rows of a step to one entry per token, in one launch and without a host sync."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .reference import Expanded

BLOCK = 256


@triton.jit
def _write_tokens(
    at,
    mask,
    slot,
    position,
    page_table_ptr,
    token_buffer_ptr,
    ids_ptr,
    positions_ptr,
    slot_mapping_ptr,
    pages_stride,
    tokens_stride,
    page_size,
):
    """Fill entries `at` of the per-token outputs; a slot below 0 is padding."""
    real = mask & (slot >= 0)
    row = slot.to(tl.int64)
    token = tl.load(token_buffer_ptr + row * tokens_stride + position, mask=real, other=0)
    page = tl.load(page_table_ptr + row * pages_stride + position // page_size, mask=real, other=0)
    where = page.to(tl.int64) * page_size + position % page_size
    tl.store(ids_ptr + at, token, mask=mask)
    tl.store(positions_ptr + at, tl.where(real, position, 0).to(tl.int64), mask=mask)
    tl.store(slot_mapping_ptr + at, tl.where(real, where, -1), mask=mask)


# The rows come as slices of one staging tensor, of any alignment: one variant for all.
@triton.jit(
    do_not_specialize=["rows"],
    do_not_specialize_on_alignment=["slots_ptr", "computed_ptr", "scheduled_ptr"],
)
def _expand_kernel(
    slots_ptr,
    computed_ptr,
    scheduled_ptr,
    page_table_ptr,
    token_buffer_ptr,
    ids_ptr,
    positions_ptr,
    slot_mapping_ptr,
    cu_ptr,
    seq_lens_ptr,
    rows,
    pages_stride,
    tokens_stride,
    page_size,
    BLOCK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """One program a row: where its tokens begin is the sum of the rows before it."""
    row = tl.program_id(0)
    others = tl.arange(0, BLOCK_ROWS)
    start = tl.sum(tl.load(scheduled_ptr + others, mask=others < row, other=0), axis=0)
    slot = tl.load(slots_ptr + row)
    computed = tl.load(computed_ptr + row)
    scheduled = tl.load(scheduled_ptr + row)
    if row == 0:
        tl.store(cu_ptr, 0)
    tl.store(cu_ptr + row + 1, start + scheduled)
    tl.store(seq_lens_ptr + row, tl.where(slot >= 0, computed + scheduled, 0))
    for first in range(0, scheduled, BLOCK):
        index = first + tl.arange(0, BLOCK)
        _write_tokens(
            start + index,
            index < scheduled,
            slot + tl.zeros_like(index),
            computed + index,
            page_table_ptr,
            token_buffer_ptr,
            ids_ptr,
            positions_ptr,
            slot_mapping_ptr,
            pages_stride,
            tokens_stride,
            page_size,
        )


@triton.jit(
    do_not_specialize=["rows"], do_not_specialize_on_alignment=["slots_ptr", "computed_ptr"]
)
def _expand_decode_kernel(
    slots_ptr,
    computed_ptr,
    page_table_ptr,
    token_buffer_ptr,
    ids_ptr,
    positions_ptr,
    slot_mapping_ptr,
    cu_ptr,
    seq_lens_ptr,
    rows,
    pages_stride,
    tokens_stride,
    page_size,
    BLOCK: tl.constexpr,
):
    """One token a row, a block of rows a program."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = row < rows
    slot = tl.load(slots_ptr + row, mask=mask, other=-1)
    computed = tl.load(computed_ptr + row, mask=mask, other=0)
    tl.store(cu_ptr + row, row, mask=row <= rows)
    tl.store(seq_lens_ptr + row, tl.where(slot >= 0, computed + 1, 0), mask=mask)
    _write_tokens(
        row,
        mask,
        slot,
        computed,
        page_table_ptr,
        token_buffer_ptr,
        ids_ptr,
        positions_ptr,
        slot_mapping_ptr,
        pages_stride,
        tokens_stride,
        page_size,
    )


def _outputs(rows: int, num_tokens: int, device: torch.device) -> Expanded:
    return (
        torch.empty(num_tokens, dtype=torch.int32, device=device),
        torch.empty(num_tokens, dtype=torch.int64, device=device),
        torch.empty(num_tokens, dtype=torch.int64, device=device),
        torch.empty(rows + 1, dtype=torch.int32, device=device),
        torch.empty(rows, dtype=torch.int32, device=device),
    )


def expand(
    slots: torch.Tensor,
    num_computed: torch.Tensor,
    num_scheduled: torch.Tensor,
    page_table: torch.Tensor,
    token_buffer: torch.Tensor,
    page_size: int,
    num_tokens: int,
) -> Expanded:
    """See reference.expand."""
    rows = slots.shape[0]
    slots, num_computed = slots.contiguous(), num_computed.contiguous()
    num_scheduled = num_scheduled.contiguous()
    outputs = _outputs(rows, num_tokens, slots.device)
    if rows == 0:
        outputs[3].zero_()
        return outputs
    _expand_kernel[(rows,)](
        slots,
        num_computed,
        num_scheduled,
        page_table,
        token_buffer,
        *outputs,
        rows,
        page_table.stride(0),
        token_buffer.stride(0),
        page_size,
        BLOCK=BLOCK,
        BLOCK_ROWS=max(1024, triton.next_power_of_2(rows)),
        num_warps=4,
    )
    return outputs


def expand_decode(
    slots: torch.Tensor,
    num_computed: torch.Tensor,
    page_table: torch.Tensor,
    token_buffer: torch.Tensor,
    page_size: int,
) -> Expanded:
    """See reference.expand_decode."""
    rows = slots.shape[0]
    slots, num_computed = slots.contiguous(), num_computed.contiguous()
    outputs = _outputs(rows, rows, slots.device)
    _expand_decode_kernel[(triton.cdiv(rows + 1, BLOCK),)](
        slots,
        num_computed,
        page_table,
        token_buffer,
        *outputs,
        rows,
        page_table.stride(0),
        token_buffer.stride(0),
        page_size,
        BLOCK=BLOCK,
        num_warps=4,
    )
    return outputs
