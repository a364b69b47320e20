"""The token table and the output head, split over the vocabulary."""

from __future__ import annotations

import torch
from torch import nn

from hpcserve.distributed.parallel_state import TensorParallel
from hpcserve.layers.parameter import ShardId, WeightParameter, weight_parameter
from hpcserve.ops.embedding import embed
from hpcserve.ops.gemm import linear


class VocabShardedWeight(nn.Module):
    """A [vocab_size, hidden_size] table of which this rank holds ceil(vocab_size / size) rows.

    The last ranks' rows beyond the vocabulary are zero.
    """

    def __init__(self, vocab_size: int, hidden_size: int, tp: TensorParallel) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.tp = tp
        self.local_size = -(-vocab_size // tp.size)
        self.first_row = tp.rank * self.local_size
        self.weight = weight_parameter(
            (self.local_size, hidden_size), self._load, {None: (vocab_size, hidden_size)}
        )

    def _load(self, param: WeightParameter, loaded: torch.Tensor, shard_id: ShardId) -> None:
        start = min(self.first_row, self.vocab_size)
        size = min(self.local_size, self.vocab_size - start)
        param.data[:size].copy_(loaded.narrow(0, start, size))
        param.data[size:].zero_()


class VocabParallelEmbedding(VocabShardedWeight):
    """ids: integer [num_tokens] -> [num_tokens, hidden_size], whole on every rank."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if self.tp.size == 1:
            return embed(ids, self.weight)
        local = ids - self.first_row
        outside = (local < 0) | (local >= self.local_size)
        rows = embed(local.masked_fill(outside, 0), self.weight)
        return self.tp.all_reduce(rows.masked_fill(outside.unsqueeze(-1), 0.0))


class ParallelLMHead(VocabShardedWeight):
    """hidden: [num_rows, hidden_size] -> logits [num_rows, vocab_size], whole on every rank.

    tied_to: the embedding whose table is used instead of an own one.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        tp: TensorParallel,
        *,
        tied_to: VocabParallelEmbedding | None = None,
    ) -> None:
        super().__init__(vocab_size, hidden_size, tp)
        if tied_to is not None:
            self.weight = tied_to.weight

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = linear(hidden, self.weight)
        if self.tp.size == 1:
            return logits
        return self.tp.all_gather(logits)[..., : self.vocab_size]
