"""Attention of one layer: rotate, write KV into the pool, attend over the pool."""

from __future__ import annotations

import torch
from torch import nn

from hpcserve.layers.forward_context import ForwardContext
from hpcserve.layers.norm import RMSNorm
from hpcserve.layers.rotary import RotaryEmbedding
from hpcserve.ops.paged_attention import Fresh
from hpcserve.ops.rope import rope_kv_write


class Attention(nn.Module):
    """Knows its layer's place in the KV pool; the backend comes with the step's context."""

    def __init__(
        self, layer_id: int, num_heads: int, num_kv_heads: int, rotary: RotaryEmbedding
    ) -> None:
        super().__init__()
        self.layer_id = layer_id
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = rotary.head_dim
        # One table serves all layers; in a list, it is not registered once per layer.
        self._rotary = [rotary]

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        positions: torch.Tensor,
        ctx: ForwardContext,
        q_norm: RMSNorm | None = None,
        k_norm: RMSNorm | None = None,
    ) -> torch.Tensor:
        """q: [num_tokens, num_heads * head_dim]; k, v: [num_tokens, num_kv_heads * head_dim].

        q_norm, k_norm: RMSNorm of each head before the rotation (Qwen3).
        Returns [num_tokens, num_heads * head_dim].
        """
        num_tokens = q.shape[0]
        q = q.view(num_tokens, self.num_heads, self.head_dim)
        fresh = Fresh(
            k.view(num_tokens, self.num_kv_heads, self.head_dim),
            v.view(num_tokens, self.num_kv_heads, self.head_dim),
            self._rotary[0].cos_sin,
            None if q_norm is None else q_norm.weight,
            None if k_norm is None else k_norm.weight,
            1e-6 if q_norm is None else q_norm.eps,
        )
        k_cache, v_cache = ctx.kv_caches[self.layer_id]
        if ctx.backend.rotates:
            attended = ctx.backend.rotate_and_forward(q, k_cache, v_cache, ctx.meta, fresh)
        else:
            pool = (k_cache, v_cache, ctx.meta.slot_mapping)
            norms = (fresh.q_norm, fresh.k_norm, fresh.eps)
            q = rope_kv_write(q, fresh.k, fresh.v, positions, fresh.cos_sin, *pool, *norms)
            attended = ctx.backend.forward(q, k_cache, v_cache, ctx.meta)
        return attended.view(num_tokens, self.num_heads * self.head_dim)
