"""What single requests add to single logits: logit_bias, and -inf on what would end them early."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hpcserve.engine.staging import to_device
from hpcserve.ipc.messages import NewRequest
from hpcserve.ops.sampling import apply_logit_bias


@dataclass(frozen=True)
class SlotBias:
    """first_free: position of the first output that may be one of `ending`."""

    bias: dict[int, float]
    ending: frozenset[int]
    first_free: int


class LogitBias:
    """The slots whose requests have a bias or min_tokens; usually none."""

    def __init__(self, eos_token_ids: Iterable[int], device: torch.device) -> None:
        self.eos_token_ids = frozenset(eos_token_ids)
        self.device = device
        self._slots: dict[int, SlotBias] = {}

    def __len__(self) -> int:
        return len(self._slots)

    def add(self, request: NewRequest) -> None:
        """Remember a request's bias, if it has one."""
        params = request.params
        ending: frozenset[int] = frozenset()
        if params.min_tokens > 0:
            ending = frozenset(params.stop_token_ids)
            # Where EOS ends nothing, it is an ordinary token.
            if not params.ignore_eos:
                ending |= self.eos_token_ids
        if params.logit_bias or ending:
            first_free = request.num_prompt_tokens + params.min_tokens
            self._slots[request.slot] = SlotBias(params.logit_bias or {}, ending, first_free)

    def release(self, slot: int) -> None:
        self._slots.pop(slot, None)

    def apply(self, logits: torch.Tensor, slots: Sequence[int], positions: Sequence[int]) -> bool:
        """Change, in place, the rows of `logits` that need it; whether there were any.

        positions[i]: where row i's new token will stand in its sequence.
        """
        entries: dict[tuple[int, int], float] = {}
        for row, (slot, position) in enumerate(zip(slots, positions, strict=True)):
            held = self._slots.get(slot)
            if held is None:
                continue
            entries.update({(row, token): value for token, value in held.bias.items()})
            if position < held.first_free:
                entries.update({(row, token): -math.inf for token in held.ending})
        if not entries:
            return False
        where = to_device(np.array(list(entries), dtype=np.int64).T.copy(), self.device)
        values = to_device(np.array(list(entries.values()), dtype=np.float32), self.device)
        apply_logit_bias(logits, where[0], where[1], values)
        return True
