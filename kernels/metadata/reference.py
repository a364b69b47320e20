"""From the rows of a step to one entry per token, in plain torch."""

from __future__ import annotations

import torch

Expanded = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def expand(
    slots: torch.Tensor,
    num_computed: torch.Tensor,
    num_scheduled: torch.Tensor,
    page_table: torch.Tensor,
    token_buffer: torch.Tensor,
    page_size: int,
    num_tokens: int,
) -> Expanded:
    """Row r runs positions [num_computed[r], num_computed[r] + num_scheduled[r]) of slots[r].

    slots, num_computed, num_scheduled: int32 [R]; page_table: int32 [max_slots, max_pages];
    token_buffer: int32 [max_slots, L]; num_tokens: sum of num_scheduled, known on the host.
    Returns (input_ids int32 [num_tokens], positions int64 [num_tokens], slot_mapping int64
    [num_tokens], cu_query_lens int32 [R + 1], seq_lens int32 [R]). Rows with a slot below 0 are
    padding: their tokens get id 0, position 0 and slot_mapping -1, their seq_len is 0.
    """
    rows = slots.shape[0]
    cu_query_lens = torch.zeros(rows + 1, dtype=torch.int32, device=slots.device)
    torch.cumsum(num_scheduled, 0, dtype=torch.int32, out=cu_query_lens[1:])
    row = torch.repeat_interleave(
        torch.arange(rows, device=slots.device), num_scheduled, output_size=num_tokens
    )
    slot = slots[row].long()
    real = slot >= 0
    first = num_computed - cu_query_lens[:-1]
    positions = torch.arange(num_tokens, device=slots.device) + first[row]
    positions = torch.where(real, positions, 0)
    slot = slot.clamp(min=0)
    input_ids = torch.where(real, token_buffer[slot, positions], 0)
    page = page_table[slot, positions // page_size].long()
    slot_mapping = torch.where(real, page * page_size + positions % page_size, -1)
    seq_lens = torch.where(slots >= 0, num_computed + num_scheduled, 0)
    return input_ids, positions, slot_mapping, cu_query_lens, seq_lens


def expand_decode(
    slots: torch.Tensor,
    num_computed: torch.Tensor,
    page_table: torch.Tensor,
    token_buffer: torch.Tensor,
    page_size: int,
) -> Expanded:
    """`expand` of R rows of one token each: shapes depend on R alone, as a CUDA graph needs."""
    ones = torch.ones_like(num_computed)
    return expand(slots, num_computed, ones, page_table, token_buffer, page_size, slots.shape[0])


def row_pages(
    page_table: torch.Tensor, slots: torch.Tensor, seq_lens: torch.Tensor, page_size: int
) -> torch.Tensor:
    """int32 [R, max_pages]: row r begins with the pages that hold seq_lens[r] tokens of slots[r].

    page_table: int32 [max_slots, max_pages]; slots, seq_lens: int32 [R]. What lies behind these
    pages is undefined; a row without tokens, or with a slot below 0, has page 0 first.
    """
    rows = page_table[slots.clamp(min=0).long()]
    padding = (seq_lens <= 0) | (slots < 0)
    rows[:, 0] = torch.where(padding, 0, rows[:, 0])
    return rows


def write_pages(page_table: torch.Tensor, changes: torch.Tensor) -> None:
    """page_table[slots[i], indices[i]] = page_ids[i]; changes: int32 [3, n], these three."""
    slots, indices, page_ids = changes
    page_table[slots.long(), indices.long()] = page_ids
