"""Llama 2 and 3, and the decoder that Mistral and Qwen share with declared differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from torch import nn

from hpcserve.config.checkpoint import CheckpointConfig
from hpcserve.distributed.parallel_state import ExpertParallel, PipelineStage, TensorParallel
from hpcserve.errors import UnsupportedModelError
from hpcserve.layers.attention import Attention
from hpcserve.layers.embedding import LogitShard, ParallelLMHead, VocabParallelEmbedding
from hpcserve.layers.forward_context import ForwardContext
from hpcserve.layers.linear import (
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
    Sums,
)
from hpcserve.layers.moe import SparseMoE
from hpcserve.layers.norm import RMSNorm
from hpcserve.layers.parameter import ShardId
from hpcserve.layers.rotary import RotaryEmbedding
from hpcserve.models.base import CausalLM


@dataclass(frozen=True)
class DecoderTraits:
    """How one architecture's layers differ from plain Llama's."""

    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False


class DecoderAttention(nn.Module):
    def __init__(
        self,
        config: CheckpointConfig,
        traits: DecoderTraits,
        layer_id: int,
        rotary: RotaryEmbedding,
        tp: TensorParallel,
    ) -> None:
        super().__init__()
        self.qkv_proj = QKVParallelLinear(
            config.hidden_size,
            config.head_dim,
            config.num_heads,
            config.num_kv_heads,
            tp,
            bias=traits.qkv_bias,
        )
        self.o_proj = RowParallelLinear(
            config.num_heads * config.head_dim,
            config.hidden_size,
            tp,
            bias=traits.o_bias,
            sums="norm",
        )
        norm_eps = config.rms_norm_eps
        self.q_norm = RMSNorm(config.head_dim, norm_eps) if traits.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, norm_eps) if traits.qk_norm else None
        self.attn = Attention(layer_id, self.qkv_proj.num_heads, self.qkv_proj.num_kv_heads, rotary)

    def forward(
        self, hidden: torch.Tensor, positions: torch.Tensor, ctx: ForwardContext
    ) -> torch.Tensor:
        q, k, v = self.qkv_proj(hidden).split(self.qkv_proj.sizes, dim=-1)
        out: torch.Tensor = self.o_proj(
            self.attn(q, k, v, positions, ctx, q_norm=self.q_norm, k_norm=self.k_norm)
        )
        return out


class GatedMLP(nn.Module):
    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        tp: TensorParallel,
        *,
        bias: bool,
        sums: Sums = "norm",
    ) -> None:
        """sums: see RowParallelLinear."""
        super().__init__()
        self.leaves_sum = sums == "norm"
        self.gate_up_proj = MergedColumnParallelLinear(
            hidden_size, [intermediate_size, intermediate_size], tp, bias=bias
        )
        self.down_proj = RowParallelLinear(intermediate_size, hidden_size, tp, bias=bias, sums=sums)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down_proj(self.gate_up_proj.gated(hidden))
        return out


class DecoderLayer(nn.Module):
    """mlp: the feed-forward half, dense or of experts; mlp_name: as the checkpoint calls it.

    leaves_sum: what it returns are this rank's parts, which the next norm sums over the group.
    ends_stage: the next layers are other ranks', who need the sum before it whole.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        traits: DecoderTraits,
        layer_id: int,
        rotary: RotaryEmbedding,
        tp: TensorParallel,
        mlp: GatedMLP | SparseMoE,
        mlp_name: str,
    ) -> None:
        super().__init__()
        self.self_attn = DecoderAttention(config, traits, layer_id, rotary, tp)
        self.add_module(mlp_name, mlp)
        # In a list, it is not registered under a second name.
        self._mlp = [mlp]
        self._tp = tp
        self.leaves_sum: bool = mlp.leaves_sum
        self.ends_stage = False
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        hidden: torch.Tensor,
        residual: torch.Tensor | None,
        positions: torch.Tensor,
        ctx: ForwardContext,
        is_part: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes and returns (what the last block added, the sum before it).

        is_part: what the last block added is a part, to be summed over the group.
        """
        if residual is None:
            residual, hidden = hidden, self.input_layernorm(hidden)
        elif is_part:
            hidden, residual = self.input_layernorm.add_sum(
                hidden, residual, self._tp, chained=True
            )
        else:
            hidden, residual = self.input_layernorm.add(hidden, residual)
        hidden = self.self_attn(hidden, positions, ctx)
        hidden, residual = self.post_attention_layernorm.add_sum(
            hidden, residual, self._tp, chained=self.leaves_sum and not self.ends_stage
        )
        return self._mlp[0](hidden), residual


#: (number in the checkpoint, number in this stage, rotary) -> a layer.
LayerMaker: TypeAlias = Callable[[int, int, RotaryEmbedding], DecoderLayer]


class Decoder(nn.Module):
    """Embedding, this stage's layers, last norm; the first and last only where they belong."""

    def __init__(
        self,
        config: CheckpointConfig,
        make_layer: LayerMaker,
        tp: TensorParallel,
        context_length: int,
        stage: PipelineStage,
    ) -> None:
        super().__init__()
        rotary = RotaryEmbedding(
            config.head_dim,
            context_length,
            config.rope_theta,
            config.rope_scaling,
            config.max_position_embeddings,
        )
        # The head of a tied model is the table, so the last stage holds it as well.
        self.embed_tokens = (
            VocabParallelEmbedding(config.vocab_size, config.hidden_size, tp)
            if stage.is_first or (stage.is_last and config.tie_word_embeddings)
            else None
        )
        held = stage.layers(config.num_layers)
        # Keyed by number: a stage's parameters are named as the checkpoint names them.
        layers = {str(number): make_layer(number, number - held.start, rotary) for number in held}
        layers[str(held[-1])].ends_stage = not stage.is_last
        self.layers = nn.ModuleDict(layers)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps) if stage.is_last else None
        self._tp = tp

    def forward(
        self, hidden: torch.Tensor, positions: torch.Tensor, ctx: ForwardContext
    ) -> torch.Tensor:
        residual, is_part = None, False
        for layer in self.layers.values():
            hidden, residual = layer(hidden, residual, positions, ctx, is_part)
            is_part = bool(layer.leaves_sum)
        out = self._end(hidden, residual, is_part)
        self._tp.settle()
        return out

    def _end(
        self, hidden: torch.Tensor, residual: torch.Tensor | None, is_part: bool
    ) -> torch.Tensor:
        if self.norm is None:  # the next stage goes on from the sum
            added = self._tp.all_reduce(hidden) if is_part else hidden
            return added if residual is None else added + residual
        if residual is None:
            normed: torch.Tensor = self.norm(hidden)
            return normed
        if is_part:
            return self.norm.add_sum(hidden, residual, self._tp, chained=True)[0]
        return self.norm.add(hidden, residual)[0]


class LlamaForCausalLM(CausalLM):
    #: What the checkpoint calls the feed-forward half of a layer.
    mlp_name: ClassVar[str] = "mlp"
    packed_modules: Mapping[str, tuple[str, ShardId]] = {
        "q_proj": ("qkv_proj", "q"),
        "k_proj": ("qkv_proj", "k"),
        "v_proj": ("qkv_proj", "v"),
        "gate_proj": ("gate_up_proj", 0),
        "up_proj": ("gate_up_proj", 1),
    }

    def __init__(
        self,
        checkpoint: CheckpointConfig,
        tp: TensorParallel,
        context_length: int,
        *,
        stage: PipelineStage = PipelineStage(),
        experts: ExpertParallel = ExpertParallel(),
    ) -> None:
        super().__init__(checkpoint, tp, context_length, stage=stage, experts=experts)
        activation = checkpoint.raw.get("hidden_act", "silu")
        if activation not in ("silu", "swish"):
            raise UnsupportedModelError(
                f"{checkpoint.model_type} with hidden_act {activation!r} is not supported; only silu"
            )
        refuse_sliding_window(self.sliding_window(checkpoint), checkpoint, context_length)
        self.tied = checkpoint.tie_word_embeddings
        traits = self.traits(checkpoint)

        def make_layer(number: int, layer_id: int, rotary: RotaryEmbedding) -> DecoderLayer:
            mlp = self.feed_forward(checkpoint, traits, number, tp, experts)
            return DecoderLayer(checkpoint, traits, layer_id, rotary, tp, mlp, self.mlp_name)

        self.model = Decoder(checkpoint, make_layer, tp, context_length, stage)
        self.lm_head = (
            ParallelLMHead(
                checkpoint.vocab_size,
                checkpoint.hidden_size,
                tp,
                tied_to=self.model.embed_tokens if self.tied else None,
            )
            if stage.is_last
            else None
        )
        self.num_layers = len(self.model.layers)
        self._checkpoint_layers = checkpoint.num_layers
        self._is_whole = stage.size == 1
        self.head_dim = checkpoint.head_dim
        heads = QKVParallelLinear.heads_of_rank(checkpoint.num_heads, checkpoint.num_kv_heads, tp)
        self.num_heads, self.num_kv_heads = heads

    @staticmethod
    def traits(checkpoint: CheckpointConfig) -> DecoderTraits:
        """What the checkpoint's own fields say about its layers."""
        attention_bias = bool(checkpoint.raw.get("attention_bias", False))
        return DecoderTraits(
            qkv_bias=attention_bias,
            o_bias=attention_bias,
            mlp_bias=bool(checkpoint.raw.get("mlp_bias", False)),
        )

    @staticmethod
    def feed_forward(
        checkpoint: CheckpointConfig,
        traits: DecoderTraits,
        number: int,
        tp: TensorParallel,
        experts: ExpertParallel,
    ) -> GatedMLP | SparseMoE:
        """The second half of layer `number`: [num_tokens, hidden_size] -> the same."""
        return GatedMLP(
            checkpoint.hidden_size, checkpoint.intermediate_size, tp, bias=traits.mlp_bias
        )

    @staticmethod
    def sliding_window(checkpoint: CheckpointConfig) -> int | None:
        """Tokens that a layer looks back over, where that is bounded."""
        return None

    def is_ignored(self, tensor_name: str) -> bool:
        # Tied checkpoints may carry the head as well; it equals the embedding.
        if super().is_ignored(tensor_name) or (self.tied and tensor_name == "lm_head.weight"):
            return True
        return not self._is_whole and self._is_of_other_stage(tensor_name)

    def _is_of_other_stage(self, tensor_name: str) -> bool:
        if tensor_name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
            return True
        prefix, _, rest = tensor_name.partition("model.layers.")
        number = rest.partition(".")[0]
        if prefix or not number.isdigit() or number in self.model.layers:
            return False
        return int(number) < self._checkpoint_layers

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        ctx: ForwardContext,
        input_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        hidden = input_embeds
        if hidden is None:
            assert self.model.embed_tokens is not None, "only the first stage looks tokens up"
            hidden = self.model.embed_tokens(input_ids)
        out: torch.Tensor = self.model(hidden, positions, ctx)
        return out

    def logit_shard(self, hidden: torch.Tensor, out: torch.Tensor | None = None) -> LogitShard:
        assert self.lm_head is not None, "only the last stage makes logits"
        shard: LogitShard = self.lm_head(hidden, out)
        return shard


def refuse_sliding_window(
    window: int | None, checkpoint: CheckpointConfig, context_length: int
) -> None:
    """Raise UnsupportedModelError where a window would cut the context."""
    if window is not None and window < context_length:
        raise UnsupportedModelError(
            f"{checkpoint.path.name} attends over a sliding window of {window} tokens, which is not "
            f"supported; pass --context-length {window} or less (it is {context_length})"
        )


EntryClass = LlamaForCausalLM
