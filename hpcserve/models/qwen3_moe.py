"""Qwen3-MoE: Qwen3's attention, and a mixture of experts in most layers."""

from __future__ import annotations

from hpcserve.config.checkpoint import CheckpointConfig
from hpcserve.distributed.parallel_state import ExpertParallel, TensorParallel
from hpcserve.layers.moe import SparseMoE
from hpcserve.models._sparse import SparseCausalLM
from hpcserve.models.llama import DecoderTraits, GatedMLP, LlamaForCausalLM
from hpcserve.models.qwen2_moe import expert_shape, is_sparse
from hpcserve.models.qwen3 import Qwen3ForCausalLM


class Qwen3MoeForCausalLM(SparseCausalLM):
    @staticmethod
    def traits(checkpoint: CheckpointConfig) -> DecoderTraits:
        return Qwen3ForCausalLM.traits(checkpoint)

    @staticmethod
    def sliding_window(checkpoint: CheckpointConfig) -> int | None:
        window = checkpoint.raw.get("sliding_window")
        return window if checkpoint.raw.get("use_sliding_window", False) else None

    @staticmethod
    def feed_forward(
        checkpoint: CheckpointConfig,
        traits: DecoderTraits,
        number: int,
        tp: TensorParallel,
        experts: ExpertParallel,
    ) -> GatedMLP | SparseMoE:
        if not is_sparse(checkpoint, number):
            return LlamaForCausalLM.feed_forward(checkpoint, traits, number, tp, experts)
        return SparseMoE(expert_shape(checkpoint), experts, tp)


EntryClass = Qwen3MoeForCausalLM
