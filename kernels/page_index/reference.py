"""Page tables as flat lists (CSR), the form that flashinfer reads."""

from __future__ import annotations

import torch


def page_index(
    page_table: torch.Tensor,
    seq_lens: torch.Tensor,
    page_size: int,
    indptr: torch.Tensor,
    indices: torch.Tensor,
    last_page_len: torch.Tensor,
) -> None:
    """Fill indptr int32 [R + 1], indices int32 [at least all pages], last_page_len int32 [R].

    page_table: int32 [R, max_pages]; seq_lens: int32 [R]. A row of length 0 (padding) is given one
    token of its first page, since an empty row has no softmax.
    """
    lengths = seq_lens.clamp(min=1)
    num_pages = (lengths + page_size - 1) // page_size
    indptr[0] = 0
    indptr[1:] = num_pages.cumsum(0)
    last_page_len.copy_(lengths - (num_pages - 1) * page_size)
    held = torch.arange(page_table.shape[1], device=page_table.device) < num_pages[:, None]
    flat = page_table[held]
    indices[: len(flat)] = flat
