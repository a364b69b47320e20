"""Attention over the paged KV pool: split-KV decode and causal prefill with a cached prefix."""

from __future__ import annotations

import torch

from hpcserve.kernels.attention import reference
from hpcserve.ops._dispatch import kernel, use_kernel


def paged_decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    page_table: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
    max_seq_len: int | None = None,
    out: torch.Tensor | None = None,
    min_split: int | None = None,
) -> torch.Tensor:
    """One query per row: q [R, Hq, D] over the first seq_lens[r] tokens of row r's pages.

    k_cache, v_cache: [num_pages, page_size, Hkv, D]; page_table: int32 [R, max_pages]; seq_lens:
    int32 [R], 0 for padding (its output is zeros). max_seq_len: a bound of seq_lens known on the
    host, which sizes the grid (default: what page_table can hold; a captured graph needs a bound
    that holds for all its replays). The result does not depend on it, nor on the other rows.
    out: [R, Hq, D], where to put the result, instead of a new tensor. min_split: the least number
    of tokens of a part of a row that is worked on in parts; it decides how sums are rounded.
    """
    args = (q, k_cache, v_cache, page_table, seq_lens, scale, max_seq_len, out)
    if use_kernel(q):
        module = kernel("attention.paged_decode_triton")
        found: torch.Tensor = module.paged_decode(*args, min_split=min_split)
        return found
    return reference.paged_decode(*args)


def paged_prefill(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    page_table: torch.Tensor,
    cu_query_lens: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
    max_query_len: int | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention of ragged rows: row r's queries are q[cu_query_lens[r]:cu_query_lens[r + 1]]
    and stand at the end of its seq_lens[r] cached tokens.

    q: [num_tokens, Hq, D]; caches and page_table as in `paged_decode`; cu_query_lens: int32
    [R + 1]. max_query_len: a bound known on the host (default: num_tokens). Rows with seq_len 0
    are padding; their output is zeros. out: [num_tokens, Hq, D], where to put the result; tokens
    that belong to no row are left as they are.
    """
    run = reference.paged_prefill
    if use_kernel(q):
        run = kernel("attention.paged_prefill_triton").paged_prefill
    return run(q, k_cache, v_cache, page_table, cu_query_lens, seq_lens, scale, max_query_len, out)
