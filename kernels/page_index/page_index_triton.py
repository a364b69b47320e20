"""Page tables as flat lists in one launch; shapes depend on the number of rows alone, so that a
CUDA graph may hold it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 256
#: Rows that a program looks at, so that few variants are compiled while requests wait: captured
#: steps have few, others up to as many as run together.
ROWS = (128, 1024)


# Tables and lengths are slices whose alignment and width change from step to step: one variant.
@triton.jit(
    do_not_specialize=["rows", "pages_stride"],
    do_not_specialize_on_alignment=[
        *("page_table_ptr", "seq_lens_ptr", "indptr_ptr", "indices_ptr", "last_page_len_ptr")
    ],
)
def _page_index_kernel(
    page_table_ptr,
    seq_lens_ptr,
    indptr_ptr,
    indices_ptr,
    last_page_len_ptr,
    rows,
    pages_stride,
    page_size,
    BLOCK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """One program a row: its pages go behind those of all rows before it."""
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK_ROWS)
    lengths = tl.maximum(tl.load(seq_lens_ptr + at, mask=at < rows, other=0), 1)
    pages = tl.where(at < rows, (lengths + page_size - 1) // page_size, 0)
    start = tl.sum(tl.where(at < row, pages, 0), axis=0)
    count = tl.sum(tl.where(at == row, pages, 0), axis=0)
    length = tl.sum(tl.where(at == row, lengths, 0), axis=0)
    if row == 0:
        tl.store(indptr_ptr, 0)
    tl.store(indptr_ptr + row + 1, start + count)
    tl.store(last_page_len_ptr + row, length - (count - 1) * page_size)
    source = page_table_ptr + row.to(tl.int64) * pages_stride
    for first in range(0, count, BLOCK):
        at_page = first + tl.arange(0, BLOCK)
        mask = at_page < count
        tl.store(indices_ptr + start + at_page, tl.load(source + at_page, mask=mask), mask=mask)


def page_index(
    page_table: torch.Tensor,
    seq_lens: torch.Tensor,
    page_size: int,
    indptr: torch.Tensor,
    indices: torch.Tensor,
    last_page_len: torch.Tensor,
) -> None:
    """See reference.page_index."""
    rows = len(seq_lens)
    _page_index_kernel[(rows,)](
        page_table,
        seq_lens,
        indptr,
        indices,
        last_page_len,
        rows,
        page_table.stride(0),
        page_size,
        BLOCK=BLOCK,
        BLOCK_ROWS=next((most for most in ROWS if rows <= most), triton.next_power_of_2(rows)),
    )
