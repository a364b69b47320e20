"""Writing keys and values into the paged pool, without rope (see ops.rope for both in one)."""

from __future__ import annotations

import torch

from hpcserve.kernels.kv_store import reference
from hpcserve.ops._dispatch import kernel, use_kernel


def write_kv(
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> None:
    """Put k[t], v[t] ([T, Hkv, D]) at slot_mapping[t] = page * page_size + offset of the pool
    [num_pages, page_size, Hkv, D]; slots below 0 are padding and are skipped."""
    if use_kernel(k):
        kernel("kv_store.write_kv_triton").write_kv(k, v, k_cache, v_cache, slot_mapping)
    else:
        reference.write_kv(k, v, k_cache, v_cache, slot_mapping)
