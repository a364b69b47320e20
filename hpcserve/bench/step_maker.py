"""Steps as a scheduler would issue them, for a batch that begins and ends together."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hpcserve.ipc.messages import Int32Array, NewRequest, SchedulerOutput, WorkerInfo
from hpcserve.sampling_params import SamplingParams

_NOTHING = np.zeros(0, dtype=np.int32)


class StepMaker:
    """token_budget: most prompt tokens of one step, as the engine's chunked prefill has it."""

    def __init__(self, info: WorkerInfo, *, page_size: int, token_budget: int) -> None:
        self._info = info
        self._page_size = page_size
        self._token_budget = token_budget
        self._used_slots = 0
        self._step_id = 0

    def obstacle(self, batch_size: int, input_len: int, num_steps: int) -> str:
        """Why such a batch cannot run; "" where it can."""
        length = input_len + num_steps + 1
        if length > self._info.context_length:
            return f"{length} tokens are more than the context of {self._info.context_length}"
        pages = batch_size * self._pages_of(length)
        if pages > self._info.num_pages:
            return f"it needs {pages} pages of KV cache, and there are {self._info.num_pages}"
        return ""

    def prefill(self, batch_size: int, input_len: int, seed: int) -> Iterator[SchedulerOutput]:
        """Random prompts in new slots, in chunks; each prompt's last step samples a token.

        Pages are given out in random order, as they are in a pool that has been in use.
        """
        generator = np.random.default_rng(seed)
        new = self._requests(batch_size, input_len, generator)
        released, self._used_slots = list(range(self._used_slots)), batch_size
        computed = np.zeros(batch_size, dtype=np.int32)
        while (computed < input_len).any():
            rows, counts = self._next_chunk(computed, input_len)
            ends = computed[rows] + counts
            yield self._step(
                rows, computed[rows], counts, ends == input_len, released=released, new=new
            )
            computed[rows] = ends
            released, new = [], []

    def decode(self, batch_size: int, input_len: int, num_steps: int) -> Iterator[SchedulerOutput]:
        """One token for every row in each step, after `prefill` of the same batch."""
        rows = np.arange(batch_size, dtype=np.int32)
        ones = np.ones(batch_size, dtype=np.int32)
        for step in range(num_steps):
            yield self._step(rows, ones * (input_len + step), ones, ones, num_decodes=batch_size)

    def _next_chunk(self, computed: Int32Array, input_len: int) -> tuple[Int32Array, Int32Array]:
        """Rows of the next step and how many tokens of each: in order, up to the budget."""
        left = input_len - computed
        before = np.cumsum(left) - left
        counts = np.clip(self._token_budget - before, 0, left).astype(np.int32)
        rows = np.flatnonzero(counts).astype(np.int32)
        return rows, counts[rows]

    def _requests(
        self, batch_size: int, input_len: int, generator: np.random.Generator
    ) -> list[NewRequest]:
        pages = generator.permutation(self._info.num_pages).astype(np.int32)
        # Decode steps need their pages too; giving them at once keeps steps free of page changes.
        each = min(self._info.num_pages // batch_size, self._pages_of(self._info.context_length))
        return [
            NewRequest(
                slot=slot,
                token_ids=generator.integers(0, self._info.vocab_size, input_len, dtype=np.int32),
                num_prompt_tokens=input_len,
                page_ids=pages[slot * each : (slot + 1) * each],
                params=SamplingParams(temperature=0.0, ignore_eos=True),
                seed=slot,
            )
            for slot in range(batch_size)
        ]

    def _step(
        self,
        slots: Int32Array,
        computed: Int32Array,
        scheduled: Int32Array,
        samples: object,
        *,
        num_decodes: int = 0,
        released: list[int] | None = None,
        new: list[NewRequest] | None = None,
    ) -> SchedulerOutput:
        self._step_id += 1
        return SchedulerOutput(
            step_id=self._step_id,
            slots=slots,
            num_computed=computed,
            num_scheduled=scheduled,
            samples=np.asarray(samples, dtype=np.int32),
            num_decodes=num_decodes,
            released_slots=released or [],
            new_requests=new or [],
            new_page_slots=_NOTHING,
            new_page_indices=_NOTHING,
            new_page_ids=_NOTHING,
        )

    def _pages_of(self, num_tokens: int) -> int:
        return -(-num_tokens // self._page_size)
