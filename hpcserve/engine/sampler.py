"""From logits to tokens: penalties, bias, sampling, log-probabilities, row by row."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from hpcserve.engine.constraints import Constraints
from hpcserve.engine.logit_bias import LogitBias
from hpcserve.engine.penalties import PenaltyState
from hpcserve.engine.staging import to_device
from hpcserve.ipc.messages import NewRequest
from hpcserve.layers.embedding import LogitShard
from hpcserve.ops.sampling import argmax, choose, sample, top_logprobs


@dataclass(frozen=True)
class Logprobs:
    """Of some rows of a batch, on the device or on the host.

    rows: index in the batch of each.  num_top: how many of the top k each asked for.
    chosen: fp32[n].  top_ids: int64[n, k].  top_values: fp32[n, k].
    """

    rows: list[int]
    num_top: list[int]
    chosen: torch.Tensor
    top_ids: torch.Tensor
    top_values: torch.Tensor


class Sampler:
    """Sampling parameters by slot, on the device, and what is done with them.

    floats: fp32[max_slots, 3], temperature, top_p, min_p.  ints: int64[max_slots, 2], top_k, seed.
    """

    def __init__(
        self,
        *,
        max_slots: int,
        vocab_size: int,
        eos_token_ids: Iterable[int],
        device: torch.device,
        constraints: Constraints | None = None,
    ) -> None:
        """constraints: where requests with a grammar stand; None where there can be none."""
        self.device = device
        self.floats = torch.zeros(max_slots, 3, device=device)
        self.ints = torch.zeros(max_slots, 2, dtype=torch.int64, device=device)
        self.penalties = PenaltyState(vocab_size, device)
        # Some checkpoints name an end that their vocabulary does not hold: there is no logit for it.
        ends = [token for token in eos_token_ids if 0 <= token < vocab_size]
        self.bias = LogitBias(ends, device)
        self.constraints = constraints
        self._is_greedy = np.zeros(max_slots, dtype=np.bool_)
        # Rows that need no more of the logits than the best score: no top-k, top-p, min-p.
        self._is_unfiltered = np.zeros(max_slots, dtype=np.bool_)
        self._vocab_size = vocab_size
        self._num_logprobs: dict[int, int] = {}

    def add(self, request: NewRequest) -> None:
        """Take over a request's parameters into its slot."""
        slot, params = request.slot, request.params
        self._is_greedy[slot] = params.is_greedy
        by_k = 0 < params.top_k < self._vocab_size
        filtered = by_k or params.top_p < 1.0 or params.min_p > 0.0
        self._is_unfiltered[slot] = params.is_greedy or not filtered
        floats = (params.temperature, params.top_p, params.min_p)
        # Seeds of 64 bits without a sign are the same bits with one.
        seed = (request.seed + 2**63) % 2**64 - 2**63
        ints = (params.top_k, seed)
        self.floats[slot] = to_device(np.array(floats, dtype=np.float32), self.device)
        self.ints[slot] = to_device(np.array(ints, dtype=np.int64), self.device)
        self.bias.add(request)
        if params.has_penalties:
            self.penalties.add(request)
        if params.logprobs is not None:
            self._num_logprobs[slot] = params.logprobs

    def release(self, slot: int) -> None:
        self.bias.release(slot)
        self.penalties.release(slot)
        self._num_logprobs.pop(slot, None)

    def takes_argmax(self, host_slots: npt.NDArray[np.int32]) -> bool:
        """Whether these slots' next tokens are the likeliest of the model's own logits, and
        nothing else is asked about them."""
        return self._takes_scores(host_slots) and bool(self._is_greedy[host_slots].all())

    def takes_best(self, host_slots: npt.NDArray[np.int32]) -> bool:
        """Whether these slots' next tokens are those of the best scores, and nothing else is
        asked about them: then no rank needs the whole vocabulary."""
        return self._takes_scores(host_slots) and bool(self._is_unfiltered[host_slots].all())

    def _takes_scores(self, host_slots: npt.NDArray[np.int32]) -> bool:
        """Whether nothing changes these slots' logits, and nobody wants to know them."""
        if self.penalties or self.bias or self._num_logprobs:
            return False
        return not (self.constraints and self.constraints.holds(host_slots.tolist()))

    def sample_best(
        self,
        shard: LogitShard,
        host_slots: npt.NDArray[np.int32],
        slots: torch.Tensor,
        positions: torch.Tensor,
    ) -> torch.Tensor:
        """The same tokens as `sample` where `takes_best`, from every rank's part of the logits."""
        if self._is_greedy[host_slots].all():
            return choose(shard.best_of_parts())
        temperature, seeds = self.floats[slots, 0], self.ints[slots, 1]
        return choose(shard.best_of_parts((temperature, seeds, positions)))

    def sample(
        self,
        logits: torch.Tensor,
        host_slots: npt.NDArray[np.int32],
        host_positions: npt.NDArray[np.int32],
        slots: torch.Tensor,
        positions: torch.Tensor,
    ) -> tuple[torch.Tensor, Logprobs | None]:
        """One token for each row of logits [n, vocab_size], which may be changed.

        slots, positions: int64[n] on the device, the same as the host's; a row's position is that
        of its new token. Returns (int64[n], log-probabilities of the rows that asked).
        """
        slot_list = host_slots.tolist()
        asked = [row for row, slot in enumerate(slot_list) if slot in self._num_logprobs]
        raw = None
        if asked:
            raw = logits if len(asked) == len(slot_list) else logits[self._index(asked)]
            # Taken before anything changes them in place.
            raw = raw.clone() if self.penalties or self.bias or self.constraints else raw
        penalised = self.penalties.apply(logits, slot_list) if self.penalties else None
        if self.bias:
            self.bias.apply(logits, slot_list, host_positions.tolist())
        if self.constraints:
            self.constraints.apply(logits, slot_list)
        if self._is_greedy[host_slots].all():
            tokens = argmax(logits)
        else:
            tokens = self._draw(logits, slots, positions)
        if penalised is not None:
            self.penalties.count(penalised, tokens)
        if raw is None:
            return tokens, None
        num_top = [self._num_logprobs[slot_list[row]] for row in asked]
        return tokens, self._logprobs(raw, tokens, asked, num_top)

    def _draw(
        self, logits: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        floats, ints = self.floats[slots], self.ints[slots]
        temperature, top_p, min_p = floats.T.contiguous()
        return sample(
            logits,
            temperature,
            ints[:, 0].int(),
            top_p,
            min_p,
            ints[:, 1].contiguous(),
            positions,
        )

    def _logprobs(
        self, raw: torch.Tensor, tokens: torch.Tensor, asked: list[int], num_top: list[int]
    ) -> Logprobs:
        chosen = tokens if len(asked) == len(tokens) else tokens[self._index(asked)]
        return Logprobs(asked, num_top, *top_logprobs(raw, chosen, max(num_top)))

    def _index(self, rows: list[int]) -> torch.Tensor:
        return to_device(np.array(rows, dtype=np.int64), self.device)
