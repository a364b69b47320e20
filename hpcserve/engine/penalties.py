"""Counts of the tokens that requests with penalties have seen; nothing exists without such a one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from hpcserve.engine.staging import to_device
from hpcserve.ipc.messages import NewRequest
from hpcserve.ops.sampling import apply_penalties

_FIRST_ROWS = 8


class PenaltyState:
    """One row of counts for each slot whose request has penalties.

    A request that comes back after a retraction brings its outputs, so its counts are rebuilt.
    output_counts: int32[rows, vocab_size].  prompt_mask: bool[rows, vocab_size].
    strengths: fp32[rows, 3], frequency, presence, repetition.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.device = device
        self.output_counts = torch.zeros(0, vocab_size, dtype=torch.int32, device=device)
        self.prompt_mask = torch.zeros(0, vocab_size, dtype=torch.bool, device=device)
        self.strengths = torch.zeros(0, 3, device=device)
        self._row_of_slot: dict[int, int] = {}
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._row_of_slot)

    def add(self, request: NewRequest) -> None:
        """Start counting for a request that has penalties."""
        if not self._free:
            self._grow()
        row = self._row_of_slot[request.slot] = self._free.pop()
        params = request.params
        tokens = to_device(request.token_ids.astype(np.int64), self.device)
        prompt, outputs = tokens[: request.num_prompt_tokens], tokens[request.num_prompt_tokens :]
        self.prompt_mask[row].zero_()[prompt] = True
        ones = torch.ones_like(outputs, dtype=torch.int32)
        self.output_counts[row].zero_().index_add_(0, outputs, ones)
        strengths = (
            params.frequency_penalty,
            params.presence_penalty,
            params.repetition_penalty,
        )
        self.strengths[row] = to_device(np.array(strengths, dtype=np.float32), self.device)

    def release(self, slot: int) -> None:
        row = self._row_of_slot.pop(slot, None)
        if row is not None:
            self._free.append(row)

    def apply(
        self, logits: torch.Tensor, slots: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Penalise, in place, the rows of `logits` whose slot has penalties.

        Returns (index of these rows of the batch, their rows here), for `count`; None for none.
        """
        pairs = [
            (index, self._row_of_slot[slot])
            for index, slot in enumerate(slots)
            if slot in self._row_of_slot
        ]
        if not pairs:
            return None
        both = to_device(np.array(pairs, dtype=np.int64).T.copy(), self.device)
        indices, rows = both[0], both[1]
        strengths = self.strengths[rows]
        logits[indices] = apply_penalties(
            logits[indices],
            self.output_counts[rows],
            self.prompt_mask[rows],
            strengths[:, 0],
            strengths[:, 1],
            strengths[:, 2],
        )
        return indices, rows

    def count(self, where: tuple[torch.Tensor, torch.Tensor], token_ids: torch.Tensor) -> None:
        """Count the tokens (int64, of the whole batch) that the penalised rows got."""
        indices, rows = where
        ones = torch.ones_like(rows, dtype=torch.int32)
        self.output_counts.index_put_((rows, token_ids[indices]), ones, accumulate=True)

    def _grow(self) -> None:
        held = len(self.output_counts)
        added = max(held, _FIRST_ROWS)
        self.output_counts = _with_rows(self.output_counts, added)
        self.prompt_mask = _with_rows(self.prompt_mask, added)
        self.strengths = _with_rows(self.strengths, added)
        self._free.extend(range(held, held + added))


def _with_rows(table: torch.Tensor, added: int) -> torch.Tensor:
    return torch.cat((table, table.new_zeros(added, table.shape[1])))
