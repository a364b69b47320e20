"""Attention in plain torch over the paged pool: the CPU's backend, and every other's reference.

Decodes: rows of similar length share a padded gather and one scaled_dot_product_attention, in
which a KV head's query heads stand as its queries, so keys are never repeated. Groups are small
enough for what was gathered to be still in the cache when it is used.
Prefills: one row at a time, in blocks of queries, each over the keys up to the block's end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import scaled_dot_product_attention

from hpcserve.attention.base import AttentionBackend, AttentionCaps, AttentionMetadata

#: Queries of a prefill that attend together; bounds the mask and the work above the diagonal.
QUERY_BLOCK = 256
#: A decode group holds rows up to this much longer than its shortest, ...
LENGTH_RATIO, LENGTH_SLACK = 1.25, 64
#: ... and gathers at most about so many bytes of keys.
GROUP_BYTES = {"cpu": 2 << 20, "cuda": 256 << 20}


@dataclass(frozen=True)
class DecodeGroup:
    """Rows that share a gather: [start, stop) of the decodes in order of length.

    pages: int64[n * pages a row].  mask: fp32 [n, 1, 1, tokens], -inf behind a row's end.
    foreign: int64[...], numbers of the gathered tokens that are not their row's, in its last page.
    Whoever had it before may have left NaN there, which no mask keeps out: 0 * NaN is NaN.
    """

    start: int
    stop: int
    pages: torch.Tensor
    mask: torch.Tensor
    foreign: torch.Tensor


@dataclass(frozen=True)
class PrefillRow:
    """start, end: its query tokens.  num_cached: tokens of history before them."""

    start: int
    end: int
    num_cached: int
    pages: torch.Tensor


class TorchSDPABackend(AttentionBackend):
    caps = AttentionCaps(
        devices=frozenset({"cpu", "cuda"}),
        page_sizes=frozenset({1, 16, 64}),
        head_dims=frozenset(range(1, 513)),
        dtypes=frozenset({torch.float32, torch.bfloat16, torch.float16}),
    )

    def __init__(self, **shape: Any) -> None:
        super().__init__(**shape)
        self.group_size = self.num_heads // self.num_kv_heads
        self._decodes: list[DecodeGroup] = []
        #: int64[num_decodes]: row of the step of each row of the groups; None: the same.
        self._order: torch.Tensor | None = None
        self._prefills: list[PrefillRow] = []
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None
        self._causal: torch.Tensor | None = None

    # ------------------------------------------------------------------ once a step

    def plan(self, meta: AttentionMetadata) -> None:
        self._decodes, self._order = [], None
        if meta.num_decodes:
            self._plan_decodes(meta)
        ends = np.cumsum(meta.host_query_lens).tolist()
        self._prefills = []
        for row in range(meta.num_decodes, meta.num_rows):
            length, query_len = int(meta.host_seq_lens[row]), int(meta.host_query_lens[row])
            if query_len == 0:
                continue
            pages = meta.page_table[row, : -(-length // self.page_size)].long()
            self._prefills.append(
                PrefillRow(ends[row] - query_len, ends[row], length - query_len, pages)
            )

    def _plan_decodes(self, meta: AttentionMetadata) -> None:
        device = meta.page_table.device
        lengths = meta.host_seq_lens[: meta.num_decodes].astype(np.int64)
        table = meta.page_table[: meta.num_decodes]
        order = np.argsort(lengths, kind="stable")
        bounds = self._group_bounds(lengths[order], device)
        if len(bounds) > 1:
            lengths = lengths[order]
            self._order = torch.from_numpy(order).to(device)
            table = table.index_select(0, self._order)
        pages_each = -(-lengths // self.page_size)
        table = table[:, : pages_each.max()].long()
        # What the table holds behind a row's end is undefined. The row's own first page stands in:
        # it holds numbers, or NaN that is the row's own.
        unused = np.arange(table.shape[1]) >= pages_each[:, None]
        table = torch.where(torch.from_numpy(unused).to(device), table[:, :1], table)
        for start, stop in bounds:
            width = int(pages_each[start:stop].max())
            hidden = np.arange(width * self.page_size) >= lengths[start:stop, None]
            mask = np.where(hidden, np.float32(-np.inf), np.float32(0.0))
            foreign = hidden & ~_is_own(pages_each[start:stop, None], width, self.page_size)
            self._decodes.append(
                DecodeGroup(
                    start,
                    stop,
                    table[start:stop, :width].flatten(),
                    torch.from_numpy(mask).to(device)[:, None, None],
                    torch.from_numpy(np.flatnonzero(foreign)).to(device),
                )
            )

    def _group_bounds(
        self, ordered: npt.NDArray[np.int64], device: torch.device
    ) -> list[tuple[int, int]]:
        """Cut rows in order of length into groups [start, stop)."""
        budget = GROUP_BYTES[device.type] // (self.num_kv_heads * self.head_dim * 4)
        bounds = []
        start = 0
        while start < len(ordered):
            longest = ordered[start] * LENGTH_RATIO + LENGTH_SLACK
            stop = int(np.searchsorted(ordered, longest, side="right"))
            # Padded size if row i is the last of the group; it grows with i.
            sizes = ordered[start:stop] * np.arange(1, stop - start + 1)
            taken = max(1, int(np.searchsorted(sizes, budget, side="right")))
            bounds.append((start, start + taken))
            start += taken
        return bounds

    # ------------------------------------------------------------------ once a layer

    def forward(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        meta: AttentionMetadata,
    ) -> torch.Tensor:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        shape = (-1, self.num_kv_heads, self.group_size, self.head_dim)
        if self._order is None:
            self._decode(q.view(shape), out.view(shape), k_cache, v_cache)
        else:
            ordered = q[: meta.num_decodes].index_select(0, self._order)
            attended = torch.empty_like(ordered)
            self._decode(ordered.view(shape), attended.view(shape), k_cache, v_cache)
            out.index_copy_(0, self._order, attended)
        for row in self._prefills:
            self._prefill(q.view(shape), out.view(shape), k_cache, v_cache, row)
        return out

    def _decode(
        self,
        queries: torch.Tensor,
        out: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
    ) -> None:
        """queries, out: [rows, num_kv_heads, group_size, head_dim] in the groups' order."""
        for group in self._decodes:
            k, v = self._gather(k_cache, v_cache, group.pages)
            if len(group.foreign):
                k.view(-1, self.num_kv_heads * self.head_dim).index_fill_(0, group.foreign, 0.0)
                v.view(-1, self.num_kv_heads * self.head_dim).index_fill_(0, group.foreign, 0.0)
            shape = (group.stop - group.start, -1, self.num_kv_heads, self.head_dim)
            attended = scaled_dot_product_attention(
                queries[group.start : group.stop],
                k.view(shape).transpose(1, 2),
                v.view(shape).transpose(1, 2),
                attn_mask=group.mask.to(queries.dtype),
                scale=self.scale,
            )
            out[group.start : group.stop].copy_(attended)

    def _prefill(
        self,
        queries: torch.Tensor,
        out: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        row: PrefillRow,
    ) -> None:
        k, v = self._gather(k_cache, v_cache, row.pages)
        # [num_kv_heads, group_size (one copy for all), tokens, head_dim]
        shape = (self.num_kv_heads, self.group_size, -1, -1)
        k = k.view(-1, self.num_kv_heads, self.head_dim).transpose(0, 1).unsqueeze(1)
        v = v.view(-1, self.num_kv_heads, self.head_dim).transpose(0, 1).unsqueeze(1)
        for start in range(row.start, row.end, QUERY_BLOCK):
            end = min(start + QUERY_BLOCK, row.end)
            num_before = row.num_cached + start - row.start
            num_keys = num_before + end - start
            attended = scaled_dot_product_attention(
                queries[start:end].permute(1, 2, 0, 3),
                k[:, :, :num_keys].expand(shape),
                v[:, :, :num_keys].expand(shape),
                attn_mask=self._causal_mask(num_before, end - start, queries),
                scale=self.scale,
            )
            out[start:end].copy_(attended.permute(2, 0, 1, 3))

    def _causal_mask(self, num_before: int, num_new: int, like: torch.Tensor) -> torch.Tensor:
        """[num_new, num_before + num_new]: query i sees the history and new keys up to i.

        Every such mask is a part of one: zeros, then a triangle.
        """
        held = self._causal
        width = 0 if held is None else held.shape[1] - QUERY_BLOCK
        if held is None or width < num_before or held.dtype != like.dtype:
            width = max(num_before, 2 * width, QUERY_BLOCK)
            triangle = torch.full((QUERY_BLOCK, QUERY_BLOCK), -torch.inf).triu(1)
            held = torch.cat((torch.zeros(QUERY_BLOCK, width), triangle), dim=1)
            held = self._causal = held.to(like.device, like.dtype)
        return held[:num_new, width - num_before : width + num_new]

    def _gather(
        self, k_cache: torch.Tensor, v_cache: torch.Tensor, pages: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of `pages`, each [len(pages), values of a page], valid until the next."""
        num_pages = pages.shape[0]
        k_rows, v_rows = k_cache.flatten(1), v_cache.flatten(1)
        held = self._buffers
        if held is None or held[0].shape[0] < num_pages or held[0].dtype != k_cache.dtype:
            # Reused between layers and steps: fresh memory would cost a page fault per 4 KB.
            size = (num_pages + num_pages // 2, k_rows.shape[1])
            held = self._buffers = (k_rows.new_empty(size), v_rows.new_empty(size))
        k, v = held[0][:num_pages], held[1][:num_pages]
        torch.index_select(k_rows, 0, pages, out=k)
        torch.index_select(v_rows, 0, pages, out=v)
        return k, v


def _is_own(pages_each: npt.NDArray[np.int64], width: int, page_size: int) -> npt.NDArray[np.bool_]:
    """bool[n, width * page_size]: False in each row's last page, True in all others.

    Those behind it are copies of the first: its own to the end, but where it is the last itself.
    """
    last = np.arange(width).repeat(page_size) == pages_each - 1
    found: npt.NDArray[np.bool_] = ~last & (pages_each > 1)
    return found


EntryClass = TorchSDPABackend
