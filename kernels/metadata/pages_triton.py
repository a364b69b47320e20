"""Page tables of a step's rows out of the table of all slots, and changes of that table."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 256


@triton.jit(do_not_specialize_on_alignment=["slots_ptr", "seq_lens_ptr"])
def _row_pages_kernel(
    page_table_ptr, slots_ptr, seq_lens_ptr, out_ptr, stride, page_size, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    length = tl.load(seq_lens_ptr + row)
    pages = tl.where(slot >= 0, (length + page_size - 1) // page_size, 0)
    if pages == 0:
        tl.store(out_ptr + row * stride, 0)
    for first in range(0, pages, BLOCK):
        at = first + tl.arange(0, BLOCK)
        mask = at < pages
        found = tl.load(page_table_ptr + slot * stride + at, mask=mask)
        tl.store(out_ptr + row * stride + at, found, mask=mask)


@triton.jit(do_not_specialize=["count"], do_not_specialize_on_alignment=["changes_ptr"])
def _write_pages_kernel(page_table_ptr, changes_ptr, count, stride, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count
    slot = tl.load(changes_ptr + at, mask=mask, other=0).to(tl.int64)
    index = tl.load(changes_ptr + count + at, mask=mask, other=0)
    page = tl.load(changes_ptr + 2 * count + at, mask=mask, other=0)
    tl.store(page_table_ptr + slot * stride + index, page, mask=mask)


def row_pages(
    page_table: torch.Tensor, slots: torch.Tensor, seq_lens: torch.Tensor, page_size: int
) -> torch.Tensor:
    """See reference.row_pages; page_table must be contiguous."""
    rows = slots.shape[0]
    out = torch.empty((rows, page_table.shape[1]), dtype=torch.int32, device=page_table.device)
    if rows:
        _row_pages_kernel[(rows,)](
            page_table, slots, seq_lens, out, page_table.stride(0), page_size, BLOCK=BLOCK
        )
    return out


def write_pages(page_table: torch.Tensor, changes: torch.Tensor) -> None:
    """See reference.write_pages; changes must be contiguous."""
    count = changes.shape[1]
    if count:
        grid = (triton.cdiv(count, BLOCK),)
        _write_pages_kernel[grid](page_table, changes, count, page_table.stride(0), BLOCK=BLOCK)
