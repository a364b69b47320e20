"""What the worker remembers of each slot on the device, and one step's view of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from hpcserve.attention.base import AttentionMetadata
from hpcserve.engine.staging import pack_to_device, to_device
from hpcserve.ipc.messages import Int32Array, NewRequest, SchedulerOutput
from hpcserve.kvcache.mha_pool import zeros
from hpcserve.ops.metadata import expand, write_pages


@dataclass(frozen=True)
class StepInputs:
    """One step on the device, with the host arrays it came from.

    input_ids: int32[num_tokens].  last_tokens: index of each sampling row's last token among them
    (int64), None where every row samples and has one token.  sample_rows: rows that sample.
    sample_slots, sample_positions: their slots, and where their new token stands (int64).
    """

    step: SchedulerOutput
    input_ids: torch.Tensor
    meta: AttentionMetadata
    sample_rows: npt.NDArray[np.int64]
    last_tokens: torch.Tensor | None
    sample_slots: torch.Tensor
    sample_positions: torch.Tensor


class InputBatch:
    """Per-slot state on the device, changed only by the steps' deltas.

    token_buffer: int32[max_slots, context_length + 1], every token of a request at its position.
    page_table: int32[max_slots, max_pages].
    """

    def __init__(
        self, *, max_slots: int, context_length: int, page_size: int, device: torch.device
    ) -> None:
        self.page_size = page_size
        self.device = device
        max_pages = -(-(context_length + 1) // page_size)
        self.token_buffer = zeros((max_slots, context_length + 1), torch.int32, device)
        self.page_table = zeros((max_slots, max_pages), torch.int32, device)

    @property
    def num_bytes(self) -> int:
        """Of all slots together: half a gigabyte for 1,024 of them and a context of 131,072."""
        return self.token_buffer.nbytes + self.page_table.nbytes

    def add(self, request: NewRequest) -> None:
        """Write a request's known tokens and the pages of its cached prefix into its slot."""
        tokens, pages = pack_to_device([request.token_ids, request.page_ids], self.device)
        self.token_buffer[request.slot, : len(tokens)] = tokens
        self.page_table[request.slot, : len(pages)] = pages

    def learn(self, step: SchedulerOutput) -> None:
        """Write the tokens that another rank sampled where they will be read."""
        slots, positions, ids = step.known_slots, step.known_positions, step.known_token_ids
        if slots is not None and positions is not None and ids is not None and len(slots):
            on_device = pack_to_device([slots, positions, ids], self.device)
            self.token_buffer[on_device[0].long(), on_device[1].long()] = on_device[2]

    def write_pages(self, step: SchedulerOutput) -> None:
        """Apply the step's changes of page tables."""
        if len(step.new_page_ids):
            changes = np.stack((step.new_page_slots, step.new_page_indices, step.new_page_ids))
            write_pages(self.page_table, to_device(changes, self.device))

    def prepare(self, step: SchedulerOutput) -> StepInputs | None:
        """Apply the step's new pages and lay out its rows; None where there are none."""
        sample_rows = np.flatnonzero(step.samples)
        ends = np.cumsum(step.num_scheduled, dtype=np.int32)
        seq_lens = step.num_computed + step.num_scheduled
        self.write_pages(step)
        slots, computed, scheduled, last, picked = pack_to_device(
            [
                step.slots,
                step.num_computed,
                step.num_scheduled,
                ends[sample_rows] - 1,
                sample_rows.astype(np.int32),
            ],
            self.device,
        )
        if len(step.slots) == 0:
            return None
        num_tokens = int(ends[-1])
        meta, input_ids = self._expand(step, slots, computed, scheduled, seq_lens, num_tokens)
        every_token = len(sample_rows) == num_tokens
        row_slots, row_positions = slots.long(), meta.seq_lens.long()
        if len(sample_rows) != len(step.slots):
            picked = picked.long()
            row_slots, row_positions = row_slots[picked], row_positions[picked]
        return StepInputs(
            step=step,
            input_ids=input_ids,
            meta=meta,
            sample_rows=sample_rows,
            last_tokens=None if every_token else last.long(),
            sample_slots=row_slots,
            sample_positions=row_positions,
        )

    def _expand(
        self,
        step: SchedulerOutput,
        slots: torch.Tensor,
        computed: torch.Tensor,
        scheduled: torch.Tensor,
        host_seq_lens: Int32Array,
        num_tokens: int,
    ) -> tuple[AttentionMetadata, torch.Tensor]:
        input_ids, positions, slot_mapping, cu_query_lens, seq_lens = expand(
            slots,
            computed,
            scheduled,
            self.page_table,
            self.token_buffer,
            self.page_size,
            num_tokens,
        )
        width = -(-int(host_seq_lens.max()) // self.page_size)
        meta = AttentionMetadata(
            num_decodes=step.num_decodes,
            num_prefills=len(step.slots) - step.num_decodes,
            seq_lens=seq_lens,
            query_lens=scheduled,
            cu_query_lens=cu_query_lens,
            page_table=self.page_table[:, :width][slots.long()],
            slot_mapping=slot_mapping,
            positions=positions,
            host_seq_lens=host_seq_lens,
            host_query_lens=step.num_scheduled,
        )
        return meta, input_ids

    def store(self, slots: torch.Tensor, positions: torch.Tensor, token_ids: torch.Tensor) -> None:
        """Write sampled tokens where the next step will read them.  All int64[n]."""
        self.token_buffer[slots, positions] = token_ids.int()

    def tokens_at(self, slot: int, start: int, end: int) -> torch.Tensor:
        """int64: the tokens of a slot at positions [start, end)."""
        return self.token_buffer[slot, start:end].long()
