"""Page tables as flat lists (CSR), the form that flashinfer reads."""

from __future__ import annotations

import torch

from hpcserve.kernels.page_index import reference
from hpcserve.ops._dispatch import kernel, use_kernel


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
    token of its first page.
    """
    run = reference.page_index
    if use_kernel(page_table):
        run = kernel("page_index.page_index_triton").page_index
    run(page_table, seq_lens, page_size, indptr, indices, last_page_len)
