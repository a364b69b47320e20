"""The contract of a model: a module of this package whose `EntryClass` is a `CausalLM`.

The module is named after the checkpoint's `model_type`. Weights reach it by the names of its
parameters; `packed_modules` says which of the checkpoint's tensors are fused into one of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import nn

from hpcserve.config.checkpoint import CheckpointConfig
from hpcserve.distributed.parallel_state import ExpertParallel, PipelineStage, TensorParallel
from hpcserve.layers.embedding import LogitShard
from hpcserve.layers.forward_context import ForwardContext
from hpcserve.layers.moe import SparseMoE
from hpcserve.layers.parameter import ShardId


class CausalLM(nn.Module, ABC):
    """A decoder that predicts the next token.

    packed_modules: name of a checkpoint's module -> (name of the fused module, its shard id).
    """

    packed_modules: Mapping[str, tuple[str, ShardId]] = {}
    #: Layers of this stage that hold KV, KV heads of this rank, and their size: what the pool needs.
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    @abstractmethod
    def __init__(
        self,
        checkpoint: CheckpointConfig,
        tp: TensorParallel,
        context_length: int,
        *,
        stage: PipelineStage = PipelineStage(),
        experts: ExpertParallel = ExpertParallel(),
    ) -> None:
        """Build this rank's part with torch's default dtype and device, weights uninitialised.

        Raises UnsupportedModelError where the checkpoint asks for what is not implemented.
        """
        super().__init__()

    def is_ignored(self, tensor_name: str) -> bool:
        """Whether a tensor of the checkpoint that fills no parameter is none to miss."""
        return tensor_name.endswith(("rotary_emb.inv_freq", ".masked_bias", ".attn.bias"))

    def sparse_layers(self) -> list[SparseMoE]:
        """Its mixtures of experts, in the order in which a step runs them."""
        return [module for module in self.modules() if isinstance(module, SparseMoE)]

    @abstractmethod
    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        ctx: ForwardContext,
        input_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """input_ids, positions: [num_tokens] -> hidden states after the last norm,
        [num_tokens, hidden_size]. input_embeds [num_tokens, hidden_size] replaces the look-up.

        A stage of a pipeline takes as input_embeds what the stage before returned: the residual
        stream between two layers."""

    @abstractmethod
    def logit_shard(self, hidden: torch.Tensor, out: torch.Tensor | None = None) -> LogitShard:
        """[num_rows, hidden_size] -> this rank's part of the logits.  out: contiguous memory."""

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[num_rows, hidden_size] -> [num_rows, vocab_size], whole on every rank."""
        return self.logit_shard(hidden).whole()
