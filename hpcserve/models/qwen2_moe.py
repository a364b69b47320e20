"""Qwen2-MoE: Qwen2's attention; most layers mix experts, and add one that every token takes."""

from __future__ import annotations

from hpcserve.config.checkpoint import CheckpointConfig
from hpcserve.distributed.parallel_state import ExpertParallel, TensorParallel
from hpcserve.layers.moe import ExpertShape, SparseMoE
from hpcserve.models._sparse import SparseCausalLM, number_of
from hpcserve.models.llama import DecoderTraits, GatedMLP, LlamaForCausalLM


class Qwen2MoeForCausalLM(SparseCausalLM):
    @staticmethod
    def traits(checkpoint: CheckpointConfig) -> DecoderTraits:
        return DecoderTraits(qkv_bias=bool(checkpoint.raw.get("qkv_bias", True)))

    @staticmethod
    def sliding_window(checkpoint: CheckpointConfig) -> int | None:
        # Unlike in Qwen2, max_window_layers counts layers that have the window.
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
        shared_size = int(checkpoint.raw.get("shared_expert_intermediate_size", 0))
        shared = None
        if shared_size:
            shared = GatedMLP(checkpoint.hidden_size, shared_size, tp, bias=False, sums="caller")
        return SparseMoE(expert_shape(checkpoint), experts, tp, shared=shared)


def is_sparse(checkpoint: CheckpointConfig, number: int) -> bool:
    """Whether layer `number` mixes experts."""
    if number in (checkpoint.raw.get("mlp_only_layers") or ()):
        return False
    return (number + 1) % int(checkpoint.raw.get("decoder_sparse_step", 1)) == 0


def expert_shape(checkpoint: CheckpointConfig) -> ExpertShape:
    return ExpertShape(
        num_experts=number_of(checkpoint, "num_local_experts", "num_experts"),
        k=number_of(checkpoint, "num_experts_per_tok"),
        hidden_size=checkpoint.hidden_size,
        size=number_of(checkpoint, "moe_intermediate_size"),
        renormalize=bool(checkpoint.raw.get("norm_topk_prob", False)),
    )


EntryClass = Qwen2MoeForCausalLM
