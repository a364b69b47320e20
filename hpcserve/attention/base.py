"""The contract of an attention backend, and what a step tells it.

A backend is one module of this package with a class `EntryClass`. KV is written by a separate
operation (`ops.rope`) before `forward`, so a backend only reads the pool; but for steps where it
`rotates`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from hpcserve.errors import EngineError
from hpcserve.ops.paged_attention import Fresh


@dataclass(frozen=True)
class AttentionCaps:
    """What a backend can do; the choice of backend is checked against it."""

    devices: frozenset[str]
    page_sizes: frozenset[int]
    head_dims: frozenset[int]
    dtypes: frozenset[torch.dtype]
    cuda_graph: bool = False


@dataclass
class AttentionMetadata:
    """One step's rows, decodes first: on the device, with host mirrors of the lengths.

    num_decodes rows have one query token; the num_prefills rows behind them any number.
    seq_lens: int32[num_rows], tokens in the cache after this step (history + new).
    query_lens: int32[num_rows].  cu_query_lens: int32[num_rows + 1], their running sum.
    page_table: int32[num_rows, max_pages]; row r holds the pages of positions 0.. in order.
    slot_mapping: int64[num_tokens], where each new token's KV goes: page * page_size + offset.
    positions: int64[num_tokens].
    """

    num_decodes: int
    num_prefills: int
    seq_lens: torch.Tensor
    query_lens: torch.Tensor
    cu_query_lens: torch.Tensor
    page_table: torch.Tensor
    slot_mapping: torch.Tensor
    positions: torch.Tensor
    host_seq_lens: npt.NDArray[np.int32]
    host_query_lens: npt.NDArray[np.int32]

    @property
    def num_rows(self) -> int:
        return self.num_decodes + self.num_prefills


class AttentionBackend(ABC):
    """Attention over the paged KV pool, causal, grouped queries.

    dtype: of the queries and of the pool.
    """

    caps: AttentionCaps
    #: Whether the step of the last plan takes `rotate_and_forward`, not rope_kv_write and `forward`.
    rotates: bool = False

    def __init__(
        self,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        scale: float,
        dtype: torch.dtype,
    ) -> None:
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.page_size = page_size
        self.scale = scale
        self.dtype = dtype

    @abstractmethod
    def plan(self, meta: AttentionMetadata) -> None:
        """Prepare one step, once for all layers; may use the host mirrors, must not wait for the
        device."""

    @abstractmethod
    def forward(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        meta: AttentionMetadata,
    ) -> torch.Tensor:
        """q: [num_tokens, num_heads, head_dim]; k_cache, v_cache: one layer of the pool,
        [num_pages, page_size, num_kv_heads, head_dim]. Returns [num_tokens, num_heads, head_dim]
        of q's dtype."""

    def rotate_and_forward(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        meta: AttentionMetadata,
        fresh: Fresh,
    ) -> torch.Tensor:
        """Where `rotates`: q and fresh.k, fresh.v of a step of decode rows as the linear layer made
        them; norm and rotation at position seq_lens - 1, the KV write and `forward` in one."""
        raise EngineError(f"{type(self).__name__} does not rotate")

    # Backends whose caps say cuda_graph also take steps of decode rows alone that are captured
    # once per number of rows and replayed: capture_plan is recorded into the graph with the
    # model, replay_plan runs on the host before each replay.

    def graph_variants(self, num_rows: int) -> int:
        """How many graphs of so many rows to capture; a replay takes that of `graph_variant`."""
        return 1

    def graph_variant(self, host_seq_lens: npt.NDArray[np.int32]) -> int:
        """Which graph of len(host_seq_lens) rows is the fastest for these lengths."""
        return 0

    def capture_plan(self, meta: AttentionMetadata, variant: int = 0) -> None:
        """Record what a step of meta.num_rows decode rows needs; meta's tensors are the ones that
        every replay will find filled anew. `forward` is recorded after it."""
        raise EngineError(f"{type(self).__name__} takes no part in CUDA graphs")

    def replay_plan(self, host_seq_lens: npt.NDArray[np.int32], variant: int = 0) -> None:
        """Prepare the replay of the graph of len(host_seq_lens) rows; padding rows have length 0."""
        raise EngineError(f"{type(self).__name__} takes no part in CUDA graphs")
