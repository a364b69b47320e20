"""Writing keys and values into the paged pool, in plain torch."""

from __future__ import annotations

import torch


def write_kv(
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> None:
    """Put k[t], v[t] ([T, Hkv, D]) at slot_mapping[t] of the pool [pages, page_size, Hkv, D].

    A slot is page * page_size + offset; slots below 0 are padding and are skipped.
    """
    valid = slot_mapping >= 0
    if not bool(valid.all()):
        k, v, slot_mapping = k[valid], v[valid], slot_mapping[valid]
    index = slot_mapping.long()
    k_cache.flatten(0, 1).index_copy_(0, index, k.to(k_cache.dtype))
    v_cache.flatten(0, 1).index_copy_(0, index, v.to(v_cache.dtype))
