"""Attention by the project's own Triton kernels: nothing to plan, nothing to compile ahead.

Decode rows take the split-KV kernel, prefill rows the causal one; both read lengths and page
tables on the device, so a captured CUDA graph stays valid when these change.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from hpcserve.attention.base import AttentionBackend, AttentionCaps, AttentionMetadata
from hpcserve.ops.paged_attention import (
    Fresh,
    paged_decode,
    paged_prefill,
    rope_paged_decode,
    rotation_pays,
)


class TritonAttention(AttentionBackend):
    """Paged attention on CUDA devices; a row's result depends on that row alone."""

    caps = AttentionCaps(
        devices=frozenset({"cuda"}),
        page_sizes=frozenset({1, 16, 64}),
        head_dims=frozenset({32, 64, 128, 256}),
        dtypes=frozenset({torch.bfloat16, torch.float16, torch.float32}),
        cuda_graph=True,
    )

    def plan(self, meta: AttentionMetadata) -> None:
        """Take the longest query of the step from the host mirror: it sizes the prefill grid."""
        prefills = meta.host_query_lens[meta.num_decodes : meta.num_rows]
        self._max_query_len = int(prefills.max()) if len(prefills) else 0
        self.rotates = False

    def capture_plan(self, meta: AttentionMetadata, variant: int = 0) -> None:
        """Nothing to record: the kernels read everything on the device."""
        self._max_query_len = 0
        shape = (self.num_heads, self.num_kv_heads, self.page_size)
        self.rotates = rotation_pays(meta.num_rows, *shape)

    def replay_plan(self, host_seq_lens: npt.NDArray[np.int32], variant: int = 0) -> None:
        """Nothing to prepare."""

    def forward(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        meta: AttentionMetadata,
    ) -> torch.Tensor:
        """See AttentionBackend.forward."""
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        decodes, rows = meta.num_decodes, meta.num_rows
        if decodes:
            paged_decode(
                q[:decodes],
                k_cache,
                v_cache,
                meta.page_table[:decodes],
                meta.seq_lens[:decodes],
                self.scale,
                out=out[:decodes],
            )
        if rows > decodes:
            # Bounds in cu_query_lens are absolute, so prefills read and write the whole tensors.
            paged_prefill(
                q,
                k_cache,
                v_cache,
                meta.page_table[decodes:rows],
                meta.cu_query_lens[decodes : rows + 1],
                meta.seq_lens[decodes:rows],
                self.scale,
                self._max_query_len,
                out=out,
            )
        return out

    def rotate_and_forward(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        meta: AttentionMetadata,
        fresh: Fresh,
    ) -> torch.Tensor:
        """See AttentionBackend.rotate_and_forward."""
        rows = (meta.page_table, meta.seq_lens)
        return rope_paged_decode(q, k_cache, v_cache, *rows, self.scale, fresh)


EntryClass = TritonAttention
