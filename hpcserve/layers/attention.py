"""Attention of one layer: rotate, write KV into the pool, attend over the pool."""

from __future__ import annotations

import torch
from torch import nn

from hpcserve.layers.forward_context import ForwardContext
from hpcserve.layers.norm import RMSNorm
from hpcserve.layers.rotary import RotaryEmbedding
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
        k_cache, v_cache = ctx.kv_caches[self.layer_id]
        rotated = rope_kv_write(
            q.view(num_tokens, self.num_heads, self.head_dim),
            k.view(num_tokens, self.num_kv_heads, self.head_dim),
            v.view(num_tokens, self.num_kv_heads, self.head_dim),
            positions,
            self._rotary[0].cos_sin,
            k_cache,
            v_cache,
            ctx.meta.slot_mapping,
            q_norm=None if q_norm is None else q_norm.weight,
            k_norm=None if k_norm is None else k_norm.weight,
            eps=1e-6 if q_norm is None else q_norm.eps,
        )
        attended = ctx.backend.forward(rotated, k_cache, v_cache, ctx.meta)
        return attended.view(num_tokens, self.num_heads * self.head_dim)
