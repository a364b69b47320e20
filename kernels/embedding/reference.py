"""Embedding look-up in plain torch."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def embed(ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Rows `ids` (int32 or int64, any shape) of table [V, H]; returns [*ids.shape, H]."""
    return F.embedding(ids, table)
