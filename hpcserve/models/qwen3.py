"""Qwen3: no bias by default, and an RMSNorm on each head of queries and keys."""

from __future__ import annotations

from hpcserve.config.checkpoint import CheckpointConfig
from hpcserve.models.llama import DecoderTraits
from hpcserve.models.qwen2 import Qwen2ForCausalLM


class Qwen3ForCausalLM(Qwen2ForCausalLM):
    @staticmethod
    def traits(checkpoint: CheckpointConfig) -> DecoderTraits:
        attention_bias = bool(checkpoint.raw.get("attention_bias", False))
        return DecoderTraits(qkv_bias=attention_bias, o_bias=attention_bias, qk_norm=True)


EntryClass = Qwen3ForCausalLM
