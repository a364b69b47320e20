"""The token table and the output head, split over the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from hpcserve.distributed.parallel_state import TensorParallel
from hpcserve.layers.parameter import ShardId, WeightParameter, weight_parameter
from hpcserve.ops.embedding import embed
from hpcserve.ops.gemm import linear
from hpcserve.ops.sampling import best_of_part


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


@dataclass(frozen=True)
class LogitShard:
    """A rank's part of the logits; at TP 1 the whole.

    logits: [num_rows, local size], of the tokens from first_id on; columns beyond the vocabulary
    are padding.
    """

    logits: torch.Tensor
    first_id: int
    vocab_size: int
    tp: TensorParallel

    @property
    def is_whole(self) -> bool:
        return self.tp.size == 1

    def first_rows(self, count: int) -> LogitShard:
        return replace(self, logits=self.logits[:count])

    def whole(self) -> torch.Tensor:
        """[num_rows, vocab_size], gathered on every rank."""
        return self.tp.all_gather(self.logits)[..., : self.vocab_size]

    def best_of_parts(
        self, draw: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """fp32 [tp size, num_rows, 2]: every rank's best score and token; see ops.sampling."""
        held = min(self.logits.shape[-1], self.vocab_size - self.first_id)
        best = best_of_part(self.logits, self.first_id, held, draw)
        return self.tp.all_gather_first(best.unsqueeze(0))


class ParallelLMHead(VocabShardedWeight):
    """hidden: [num_rows, hidden_size] -> this rank's part of the logits.

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

    def forward(self, hidden: torch.Tensor, out: torch.Tensor | None = None) -> LogitShard:
        """out: memory for the logits, [num_rows, local size]."""
        logits = linear(hidden, self.weight, out=out)
        return LogitShard(logits, self.first_row, self.vocab_size, self.tp)
