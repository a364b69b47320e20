"""Mixtral: Mistral's attention, and a mixture of experts in every layer."""

from __future__ import annotations

from hpcserve.config.checkpoint import CheckpointConfig
from hpcserve.distributed.parallel_state import ExpertParallel, TensorParallel
from hpcserve.layers.moe import ExpertShape, SparseMoE
from hpcserve.models._sparse import SparseCausalLM, number_of
from hpcserve.models.llama import DecoderTraits


class MixtralForCausalLM(SparseCausalLM):
    mlp_name = "block_sparse_moe"
    expert_names = ("w1", "w3", "w2")

    @staticmethod
    def traits(checkpoint: CheckpointConfig) -> DecoderTraits:
        return DecoderTraits()

    @staticmethod
    def sliding_window(checkpoint: CheckpointConfig) -> int | None:
        return checkpoint.raw.get("sliding_window")

    @staticmethod
    def feed_forward(
        checkpoint: CheckpointConfig,
        traits: DecoderTraits,
        number: int,
        tp: TensorParallel,
        experts: ExpertParallel,
    ) -> SparseMoE:
        shape = ExpertShape(
            num_experts=number_of(checkpoint, "num_local_experts", "num_experts"),
            k=number_of(checkpoint, "num_experts_per_tok"),
            hidden_size=checkpoint.hidden_size,
            size=checkpoint.intermediate_size,
            renormalize=True,
        )
        return SparseMoE(shape, experts, tp)


EntryClass = MixtralForCausalLM
