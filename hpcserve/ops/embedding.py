"""Embedding look-up."""

from __future__ import annotations

import torch

from hpcserve.kernels.embedding import reference
from hpcserve.ops._dispatch import kernel, use_kernel


def embed(ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Rows `ids` (int32 or int64, any shape) of table [V, H]; returns [*ids.shape, H]."""
    if use_kernel(table):
        out: torch.Tensor = kernel("embedding.embed_triton").embed(ids, table)
        return out
    return reference.embed(ids, table)
