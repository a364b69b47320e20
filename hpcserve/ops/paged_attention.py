"""Attention over the paged KV pool: split-KV decode and causal prefill with a cached prefix."""

from __future__ import annotations

import torch

from hpcserve.kernels.attention import reference
from hpcserve.kernels.attention.reference import Fresh
from hpcserve.ops._dispatch import kernel, use_kernel

__all__ = [
    "FEW_ROWS",
    "FEW_SPLIT",
    "Fresh",
    "paged_decode",
    "paged_prefill",
    "rope_paged_decode",
    "rotation_pays",
]

#: Decodes of so many rows and less leave most of a GPU idle: measured on an H200, they are faster
#: with parts of at least FEW_SPLIT tokens, and with rotation and KV write in the same launch (in a
#: layer of Llama-3.1-8B 1.0 us less at 1 row, 0.3 at 2, 0.6 at 4).
FEW_ROWS, FEW_SPLIT = 4, 64
#: One program has all q heads of a kv head, since it alone may read the token that it writes.
_ROTATED_GROUP = 16


def rotation_pays(num_rows: int, num_heads: int, num_kv_heads: int, page_size: int) -> bool:
    """Whether `rope_paged_decode` takes such rows, and is faster than `rope_kv_write` with
    `paged_decode` behind it.

    Rows must not have each other's last token in their history: rows of one token that share a
    prefix do where a page is one token; a larger page is shared once it is full, and then what its
    owner computes in the same step lies behind it, or is a prompt of several tokens.
    """
    group = num_heads // num_kv_heads
    return num_rows <= FEW_ROWS and group <= _ROTATED_GROUP and page_size > 1


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


def rope_paged_decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    page_table: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
    fresh: Fresh,
    min_split: int | None = None,
) -> torch.Tensor:
    """`paged_decode` of rows whose last token is not in the cache yet: normalises (where weights
    are given) and rotates q and fresh.k at position seq_lens[r] - 1, and writes k and v to row r's
    pages, in one launch. Rows of padding write nothing. See `rotation_pays` for what it takes.

    q: [R, Hq, D], fresh.k, fresh.v: [R, Hkv, D], strided views of one qkv tensor as long as each
    head's D values are contiguous. The others as in `paged_decode`. Returns [R, Hq, D].
    """
    args = (q, k_cache, v_cache, page_table, seq_lens, scale)
    if use_kernel(q):
        module = kernel("attention.paged_decode_triton")
        found: torch.Tensor = module.paged_decode(*args, min_split=min_split, fresh=fresh)
        return found
    return reference.rope_paged_decode(*args, fresh)


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
