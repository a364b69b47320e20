"""From the rows of a step to one entry per token, on the device."""

from __future__ import annotations

import torch

from hpcserve.kernels.metadata import reference
from hpcserve.kernels.metadata.reference import Expanded
from hpcserve.ops._dispatch import kernel, use_kernel

__all__ = ["Expanded", "expand", "expand_decode", "row_pages", "write_pages"]


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
    token_buffer: int32 [max_slots, L]; num_tokens: the sum of num_scheduled.
    Returns (input_ids int32 [num_tokens], positions int64 [num_tokens], slot_mapping int64
    [num_tokens], cu_query_lens int32 [R + 1], seq_lens int32 [R]). Rows with a slot below 0 are
    padding: id 0, position 0, slot_mapping -1, seq_len 0.
    """
    run = reference.expand
    if use_kernel(slots):
        run = kernel("metadata.expand_triton").expand
    return run(slots, num_computed, num_scheduled, page_table, token_buffer, page_size, num_tokens)


def expand_decode(
    slots: torch.Tensor,
    num_computed: torch.Tensor,
    page_table: torch.Tensor,
    token_buffer: torch.Tensor,
    page_size: int,
) -> Expanded:
    """`expand` of R rows of one token each; every shape depends on R alone, so it may be captured
    in a CUDA graph and replayed with other contents of its inputs."""
    run = reference.expand_decode
    if use_kernel(slots):
        run = kernel("metadata.expand_triton").expand_decode
    return run(slots, num_computed, page_table, token_buffer, page_size)


def row_pages(
    page_table: torch.Tensor, slots: torch.Tensor, seq_lens: torch.Tensor, page_size: int
) -> torch.Tensor:
    """int32 [R, max_pages]: row r begins with the pages that hold seq_lens[r] tokens of slots[r].

    page_table: int32 [max_slots, max_pages]; slots, seq_lens: int32 [R]. What lies behind these
    pages is undefined; a row without tokens, or with a slot below 0, has page 0 first.
    """
    run = reference.row_pages
    if use_kernel(page_table):
        run = kernel("metadata.pages_triton").row_pages
    return run(page_table, slots, seq_lens, page_size)


def write_pages(page_table: torch.Tensor, changes: torch.Tensor) -> None:
    """page_table[slots[i], indices[i]] = page_ids[i]; changes: int32 [3, n], these three, each
    pair of slot and index at most once."""
    run = reference.write_pages
    if use_kernel(page_table):
        run = kernel("metadata.pages_triton").write_pages
    run(page_table, changes)
