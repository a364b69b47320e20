"""Log-probabilities of the tokens of prompts, for the requests that ask for them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from hpcserve.engine.input_batch import InputBatch, StepInputs
from hpcserve.engine.sampler import Logprobs
from hpcserve.ipc.messages import NewRequest
from hpcserve.ops.sampling import top_logprobs

#: Rows of logits made at a time: a long prompt's would not fit in memory together.
_ROWS = 256


class PromptLogprobs:
    """The slots whose requests asked.  slot -> (tokens of the prompt, how many likeliest)."""

    def __init__(self) -> None:
        self._slots: dict[int, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._slots)

    def add(self, request: NewRequest) -> None:
        if request.params.prompt_logprobs is not None:
            asked = (request.num_prompt_tokens, request.params.prompt_logprobs)
            self._slots[request.slot] = asked

    def release(self, slot: int) -> None:
        self._slots.pop(slot, None)

    def compute(
        self,
        inputs: StepInputs,
        hidden: torch.Tensor,
        batch: InputBatch,
        compute_logits: Callable[[torch.Tensor], torch.Tensor],
    ) -> dict[int, Logprobs]:
        """Row of the step -> one entry for each token of the prompt that its positions predict.

        hidden: [num_tokens, hidden_size] of the step.
        """
        found: dict[int, Logprobs] = {}
        starts = np.cumsum(inputs.step.num_scheduled) - inputs.step.num_scheduled
        for row, slot in enumerate(inputs.step.slots.tolist()):
            if slot not in self._slots:
                continue
            num_prompt_tokens, num_top = self._slots[slot]
            first = int(inputs.step.num_computed[row])
            count = min(int(inputs.step.num_scheduled[row]), num_prompt_tokens - 1 - first)
            if count <= 0:
                continue
            states = hidden[int(starts[row]) : int(starts[row]) + count]
            targets = batch.tokens_at(slot, first + 1, first + 1 + count)
            parts = [
                top_logprobs(compute_logits(some), chosen, num_top)
                for some, chosen in zip(states.split(_ROWS), targets.split(_ROWS), strict=True)
            ]
            chosen, ids, values = (torch.cat(part) for part in zip(*parts, strict=True))
            found[row] = Logprobs([row] * count, [num_top] * count, chosen, ids, values)
        return found
