"""What one step's forward pass is given besides its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hpcserve.attention.base import AttentionBackend, AttentionMetadata


@dataclass(frozen=True)
class ForwardContext:
    """Passed down explicitly, so that a model has no hidden state between steps.

    kv_caches[layer]: (k, v), each [num_pages, page_size, num_kv_heads, head_dim].
    """

    meta: AttentionMetadata
    backend: AttentionBackend
    kv_caches: Sequence[tuple[torch.Tensor, torch.Tensor]]
