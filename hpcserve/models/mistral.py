"""Mistral: Llama's layers; some releases attend over a sliding window."""

from __future__ import annotations

from hpcserve.config.checkpoint import CheckpointConfig
from hpcserve.models.llama import DecoderTraits, LlamaForCausalLM


class MistralForCausalLM(LlamaForCausalLM):
    @staticmethod
    def traits(checkpoint: CheckpointConfig) -> DecoderTraits:
        return DecoderTraits()

    @staticmethod
    def sliding_window(checkpoint: CheckpointConfig) -> int | None:
        # Only an explicit null turns off what transformers takes for a config that is silent.
        return checkpoint.raw.get("sliding_window", 4096)


EntryClass = MistralForCausalLM
