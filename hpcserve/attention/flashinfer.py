"""flashinfer: paged prefill (fa3 or fa2) and tensor-core decode, also under CUDA graphs.

flashinfer plans on the host: it lays out which block reads which pages, and sends that through
one pinned buffer. The buffer of a step that has not started must not be written, so everything
with a plan exists twice and steps take turns. With two steps under way that is enough; in a
pipeline there are more, and a plan waits until the one before last has left its buffer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

# By name: a release that lacks one shows it here, where another backend can still be chosen.
from flashinfer import BatchDecodeWithPagedKVCacheWrapper, BatchPrefillWithPagedKVCacheWrapper
from flashinfer.decode import fast_decode_plan

from hpcserve.attention.base import AttentionBackend, AttentionCaps, AttentionMetadata
from hpcserve.ops.page_index import page_index
from hpcserve.ops.paged_attention import (
    FEW_ROWS,
    FEW_SPLIT,
    Fresh,
    paged_decode,
    rope_paged_decode,
    rotation_pays,
)

#: Partial results of split rows: 320 MiB were needed for 1,024 rows of 4,096 values each.
_WORKSPACE_BYTES = 512 << 20
_WORKSPACE_ROW_SIZE = 4096
_INT_WORKSPACE_BYTES = 8 << 20
#: Decodes attend with the project's own kernel where it was measured to be faster on an H200, which
#: also spares them the plan: in graphs few rows as long as they are short (there are graphs of both
#: kinds), and everywhere many rows (at most 1,000 tokens each: 3 to 15 % faster; 2,000: up to 4 %
#: slower; an eager plan takes 1 ms of the host for 256 rows, 6 ms for 1,000).
_MANY_ROWS = 96
#: Tokens of the longest of few short rows, and rows x tokens x kv heads. By itself the own kernel is as
#: fast as flashinfer's at 512 tokens and 1 to 3 us slower at 1,024 (1 to 4 rows; 8, 2 and 1 kv heads);
#: rotating and writing in the same launch, and starting before the kernel ahead has ended, make up for
#: 3 (benchmarks/kernels/bench_short_decode.py; 70B at TP4, 1,060 tokens: 10.50 ms a step against 10.58).
_SHORT_ROW, _SHORT_ROWS = 1280, 32768
#: Tokens of a part of a row that is split where rows alone give enough programs.
_MANY_SPLIT = 1024
#: fa3 has no kernels for larger heads.
_FA3_HEAD_DIMS = (64, 128)


@dataclass
class _Pages:
    """One step's pages as flashinfer wants them: lengths on the host, the list on the device."""

    indptr: torch.Tensor
    last_page_len: torch.Tensor
    indices: torch.Tensor


class FlashInfer(AttentionBackend):
    caps = AttentionCaps(
        devices=frozenset({"cuda"}),
        page_sizes=frozenset({1, 16, 64}),
        head_dims=frozenset({64, 128, 256}),
        dtypes=frozenset({torch.bfloat16, torch.float16}),
        cuda_graph=True,
    )

    def __init__(self, **shape: Any) -> None:
        super().__init__(**shape)
        device = torch.device("cuda", torch.cuda.current_device())
        self._device = device
        # flashinfer counts on zeros in it at first use.
        row_size = max(self.num_heads * self.head_dim, _WORKSPACE_ROW_SIZE)
        size = _WORKSPACE_BYTES // _WORKSPACE_ROW_SIZE * row_size
        self._workspace = torch.zeros(size, dtype=torch.uint8, device=device)
        self._int_workspace = torch.empty(_INT_WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        self._pinned = [
            torch.empty(_INT_WORKSPACE_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)
        ]
        self._prefills = [self._prefill_wrapper() for _ in range(2)]
        self._decodes = [self._decode_wrapper() for _ in range(2)]
        self._graphs: dict[int, Any] = {}
        self._indices = torch.empty(0, dtype=torch.int32, device=device)
        self._turn = 0
        # Of each turn: when its plan was read out of the pinned buffers.
        self._sent = [torch.cuda.Event() for _ in range(2)]
        self._capturing: Any = None
        self._own_split: int | None = None
        # Of an eager step's decodes that the own kernel attends for; 0 where flashinfer does.
        self._longest_decode = 0

    # ------------------------------------------------------------ eager steps

    def plan(self, meta: AttentionMetadata) -> None:
        self._capturing = None
        self._own_split = None
        self.rotates = False
        self._take_turn()
        pages = self._pages(meta)
        self._longest_decode = 0
        if meta.num_decodes >= _MANY_ROWS:
            self._longest_decode = int(meta.host_seq_lens[: meta.num_decodes].max())
        elif meta.num_decodes:
            self._plan_decodes(meta, pages)
        if meta.num_prefills:
            self._plan_prefills(meta, pages)
        self._sent[self._turn].record()

    def _plan_decodes(self, meta: AttentionMetadata, pages: _Pages) -> None:
        count = meta.num_decodes
        indptr = pages.indptr[: count + 1]
        self._decodes[self._turn].plan(
            indptr,
            pages.indices[: int(indptr[-1])],
            pages.last_page_len[:count],
            self.num_heads,
            self.num_kv_heads,
            self.head_dim,
            self.page_size,
            q_data_type=self.dtype,
            kv_data_type=self.dtype,
            sm_scale=self.scale,
            seq_lens=torch.from_numpy(meta.host_seq_lens[:count]),
        )

    def _plan_prefills(self, meta: AttentionMetadata, pages: _Pages) -> None:
        first = meta.num_decodes
        start = int(pages.indptr[first])
        query_indptr = np.zeros(meta.num_prefills + 1, np.int32)
        np.cumsum(meta.host_query_lens[first:], out=query_indptr[1:])
        self._prefills[self._turn].plan(
            torch.from_numpy(query_indptr),
            pages.indptr[first:] - start,
            pages.indices[start:],
            pages.last_page_len[first:],
            self.num_heads,
            self.num_kv_heads,
            self.head_dim,
            self.page_size,
            causal=True,
            q_data_type=self.dtype,
            kv_data_type=self.dtype,
            sm_scale=self.scale,
            seq_lens=torch.from_numpy(meta.host_seq_lens[first:]),
        )

    def forward(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        meta: AttentionMetadata,
    ) -> torch.Tensor:
        pool = (k_cache, v_cache)
        if self._own_split is not None:
            table, lens, split = meta.page_table, meta.seq_lens, self._own_split
            return paged_decode(q, k_cache, v_cache, table, lens, self.scale, min_split=split)
        if self._capturing is not None:
            captured: torch.Tensor = self._capturing.run(q, pool)
            return captured
        out = torch.empty_like(q)
        count = meta.num_decodes
        if self._longest_decode:
            paged_decode(
                q[:count],
                k_cache,
                v_cache,
                meta.page_table[:count],
                meta.seq_lens[:count],
                self.scale,
                max_seq_len=self._longest_decode,
                out=out[:count],
                min_split=_MANY_SPLIT,
            )
        elif count:
            self._decodes[self._turn].run(q[:count], pool, out=out[:count])
        if meta.num_prefills:
            self._prefills[self._turn].run(q[count:], pool, out=out[count:])
        return out

    def rotate_and_forward(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        meta: AttentionMetadata,
        fresh: Fresh,
    ) -> torch.Tensor:
        rows, split = (meta.page_table, meta.seq_lens), self._own_split
        return rope_paged_decode(q, k_cache, v_cache, *rows, self.scale, fresh, min_split=split)

    # ------------------------------------------------------------ CUDA graphs

    def graph_variants(self, num_rows: int) -> int:
        return 2 if num_rows <= FEW_ROWS else 1

    def graph_variant(self, host_seq_lens: npt.NDArray[np.int32]) -> int:
        rows = len(host_seq_lens)
        bound = min(_SHORT_ROW, _SHORT_ROWS // (rows * self.num_kv_heads))
        return int(rows <= FEW_ROWS and int(host_seq_lens.max()) <= bound)

    @staticmethod
    def _split_of_own(rows: int, variant: int) -> int | None:
        """The own kernel's min_split; None for flashinfer."""
        if rows >= _MANY_ROWS:
            return _MANY_SPLIT
        return FEW_SPLIT if variant == 1 else None

    def capture_plan(self, meta: AttentionMetadata, variant: int = 0) -> None:
        rows = meta.num_rows
        self._own_split = self._split_of_own(rows, variant)
        self.rotates = self._own_split == FEW_SPLIT and rotation_pays(
            rows, self.num_heads, self.num_kv_heads, self.page_size
        )
        if self._own_split is not None:
            return
        if rows not in self._graphs:
            self._graphs[rows] = self._graph_wrapper(rows, meta.page_table.shape[1])
        self._capturing = self._graphs[rows]
        page_index(
            meta.page_table,
            meta.seq_lens,
            self.page_size,
            self._capturing._paged_kv_indptr_buf,
            self._capturing._paged_kv_indices_buf,
            self._capturing._paged_kv_last_page_len_buf,
        )

    def replay_plan(self, host_seq_lens: npt.NDArray[np.int32], variant: int = 0) -> None:
        if self._split_of_own(len(host_seq_lens), variant) is not None:
            return
        wrapper = self._graphs[len(host_seq_lens)]
        self._take_turn()
        indptr, last_page_len = self._host_pages(host_seq_lens)
        wrapper._pin_memory_int_workspace_buffer = self._pinned[self._turn]
        fast_decode_plan(
            wrapper,
            indptr,
            self._indices[:0],  # page_index fills the list, inside the graph
            last_page_len,
            self.num_heads,
            self.num_kv_heads,
            self.head_dim,
            self.page_size,
            q_data_type=self.dtype,
            kv_data_type=self.dtype,
            sm_scale=self.scale,
            global_override_indptr_cpu=indptr,
        )
        self._sent[self._turn].record()

    def _graph_wrapper(self, rows: int, max_pages: int) -> Any:
        """A decode wrapper whose buffers a graph may hold on to, planned once in full."""
        if len(self._indices) < rows * max_pages:
            self._indices = torch.zeros(rows * max_pages, dtype=torch.int32, device=self._device)
        wrapper = BatchDecodeWithPagedKVCacheWrapper(
            self._workspace,
            "NHD",
            use_cuda_graph=True,
            use_tensor_cores=True,
            paged_kv_indptr_buffer=self._int32(rows + 1),
            paged_kv_indices_buffer=self._indices,
            paged_kv_last_page_len_buffer=self._int32(rows),
            backend="fa2",
        )
        # One plan at a time is on the device, so all graphs share its place there.
        wrapper._int_workspace_buffer = self._int_workspace
        indptr, last_page_len = self._host_pages(np.ones(rows, np.int32))
        wrapper.plan(
            indptr,
            self._indices[:rows],
            last_page_len,
            self.num_heads,
            self.num_kv_heads,
            self.head_dim,
            self.page_size,
            q_data_type=self.dtype,
            kv_data_type=self.dtype,
            sm_scale=self.scale,
        )
        return wrapper

    def _int32(self, size: int) -> torch.Tensor:
        return torch.zeros(size, dtype=torch.int32, device=self._device)

    # ------------------------------------------------------------ pages and wrappers

    def _take_turn(self) -> None:
        self._turn ^= 1
        self._sent[self._turn].synchronize()

    def _host_pages(
        self, host_seq_lens: npt.NDArray[np.int32]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(indptr, last_page_len) on the host; the same numbers as page_index computes."""
        lengths = np.maximum(host_seq_lens, 1)
        num_pages = (lengths + (self.page_size - 1)) // self.page_size
        indptr = np.zeros(len(lengths) + 1, np.int32)
        np.cumsum(num_pages, out=indptr[1:])
        last_page_len = lengths - (num_pages - 1) * self.page_size
        return torch.from_numpy(indptr), torch.from_numpy(last_page_len)

    def _pages(self, meta: AttentionMetadata) -> _Pages:
        indptr, last_page_len = self._host_pages(meta.host_seq_lens)
        indices = self._int32(int(indptr[-1]))
        page_index(
            meta.page_table,
            meta.seq_lens,
            self.page_size,
            self._int32(meta.num_rows + 1),
            indices,
            self._int32(meta.num_rows),
        )
        return _Pages(indptr, last_page_len, indices)

    def _prefill_wrapper(self) -> Any:
        hopper = torch.cuda.get_device_capability(self._device) == (9, 0)
        backend = "fa3" if hopper and self.head_dim in _FA3_HEAD_DIMS else "fa2"
        return BatchPrefillWithPagedKVCacheWrapper(self._workspace, "NHD", backend=backend)

    def _decode_wrapper(self) -> Any:
        return BatchDecodeWithPagedKVCacheWrapper(
            self._workspace, "NHD", use_tensor_cores=True, backend="fa2"
        )


EntryClass = FlashInfer
