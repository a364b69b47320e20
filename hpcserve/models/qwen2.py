"""Qwen2 and Qwen2.5: Llama's layers with a bias on queries, keys and values."""

from __future__ import annotations

from hpcserve.config.checkpoint import CheckpointConfig
from hpcserve.models.llama import DecoderTraits, LlamaForCausalLM


class Qwen2ForCausalLM(LlamaForCausalLM):
    @staticmethod
    def traits(checkpoint: CheckpointConfig) -> DecoderTraits:
        return DecoderTraits(qkv_bias=True)

    @staticmethod
    def sliding_window(checkpoint: CheckpointConfig) -> int | None:
        if not checkpoint.raw.get("use_sliding_window", False):
            return None
        # The first max_window_layers layers see everything, the others the window.
        if checkpoint.raw.get("max_window_layers", 0) >= checkpoint.num_layers:
            return None
        return checkpoint.raw.get("sliding_window")


EntryClass = Qwen2ForCausalLM
