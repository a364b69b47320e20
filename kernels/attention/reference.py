"""Attention over the paged KV pool, naively: gather each row's pages, mask, softmax in fp32."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..rope.reference import rope_kv_write


class Fresh(NamedTuple):
    """What a decode's last token brings: k, v [R, Hkv, D] before norm and rotation, their heads
    contiguous; cos_sin as of rope.reference.cos_sin_cache; norms [D] of q's and k's heads."""

    k: torch.Tensor
    v: torch.Tensor
    cos_sin: torch.Tensor
    q_norm: torch.Tensor | None = None
    k_norm: torch.Tensor | None = None
    eps: float = 1e-6


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, first: int
) -> torch.Tensor:
    """q [n, Hq, D] at positions first.. against k, v [len, Hkv, D]; causal; fp32 [n, Hq, D]."""
    queries, heads, _ = q.shape
    group = heads // k.shape[1]
    keys = k.float().repeat_interleave(group, dim=1)
    values = v.float().repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,khd->hqk", q.float(), keys) * scale
    at = torch.arange(first, first + queries, device=q.device)
    hidden = torch.arange(k.shape[0], device=q.device)[None, :] > at[:, None]
    weights = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1)
    return torch.einsum("hqk,khd->qhd", weights, values)


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
    """Causal attention of ragged rows whose keys (the new ones too) are in the pool.

    q: [num_tokens, Hq, D]; caches: [num_pages, page_size, Hkv, D]; page_table: int32
    [R, max_pages]; cu_query_lens: int32 [R + 1]; seq_lens: int32 [R], history + new, 0 for
    padding. The last token of row r's queries stands at position seq_lens[r] - 1.
    Returns [num_tokens, Hq, D] of q's dtype, or fills `out`; rows of padding get zeros, tokens of
    no row keep what `out` held. max_query_len is a hint that only kernels use.
    """
    if out is None:
        out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    page_size = k_cache.shape[1]
    bounds = cu_query_lens.tolist()
    for row, length in enumerate(seq_lens.tolist()):
        start, end = bounds[row], bounds[row + 1]
        if start == end:
            continue
        if length == 0:
            out[start:end] = 0
            continue
        pages = page_table[row, : -(-length // page_size)].long()
        k = k_cache[pages].flatten(0, 1)[:length]
        v = v_cache[pages].flatten(0, 1)[:length]
        out[start:end] = _attend(q[start:end], k, v, scale, length - (end - start)).to(q.dtype)
    return out


def paged_decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    page_table: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
    max_seq_len: int | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """`paged_prefill` of R rows with one query each: q and the result are [R, Hq, D]."""
    cu_query_lens = torch.arange(q.shape[0] + 1, dtype=torch.int32, device=q.device)
    return paged_prefill(q, k_cache, v_cache, page_table, cu_query_lens, seq_lens, scale, out=out)


def rope_paged_decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    page_table: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
    fresh: Fresh,
) -> torch.Tensor:
    """rope.reference.rope_kv_write of each row's last token, then paged_decode; rows of padding
    write nothing."""
    page_size = k_cache.shape[1]
    positions = (seq_lens.long() - 1).clamp(min=0)
    pages = page_table.long().gather(1, positions[:, None] // page_size).squeeze(1)
    slots = torch.where(seq_lens > 0, pages * page_size + positions % page_size, -1)
    args = (positions, fresh.cos_sin, k_cache, v_cache, slots)
    q = rope_kv_write(q, fresh.k, fresh.v, *args, fresh.q_norm, fresh.k_norm, fresh.eps)
    return paged_decode(q, k_cache, v_cache, page_table, seq_lens, scale)
