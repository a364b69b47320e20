"""CUDA graphs of steps whose rows are all decodes: from slots to greedy tokens in one launch.

One graph per number of rows of a ladder; a step takes the next larger one, its last rows are
padding that writes nothing. The graphs read the token buffer and the page table themselves, so a
step sends two numbers a row. They also write the likeliest token of each row to the token buffer;
where another one is sampled from the logits, it is written over it.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

import numpy as np
import torch

from hpcserve.attention.base import AttentionBackend, AttentionMetadata
from hpcserve.engine.input_batch import InputBatch
from hpcserve.ipc.messages import Int32Array
from hpcserve.kvcache.mha_pool import MHAPool
from hpcserve.layers.forward_context import ForwardContext
from hpcserve.models.base import CausalLM
from hpcserve.ops.metadata import expand_decode, row_pages
from hpcserve.ops.sampling import store_argmax

_PADDING_SLOT = -1


def ladder(max_rows: int) -> list[int]:
    """Sizes up to `max_rows`: fine where a row more costs much; at most a quarter is padding."""
    sizes = [*range(1, 9), *range(12, 33, 4), *range(40, 65, 8), *range(80, 129, 16)]
    sizes += [*range(160, 257, 32), *range(320, 513, 64), *range(640, 1025, 128)]
    sizes += range(1280, max_rows + 256, 256)
    return sorted({*(size for size in sizes if size < max_rows), max_rows})


@dataclass(frozen=True)
class DecodeOutputs:
    """In the graph's own memory: valid until the next replay, token_ids for num_turns of them.

    logits: [num_rows, vocab_size]; of a stage that is not the last, hidden states
    [num_rows, hidden_size].  token_ids: int64[num_rows], the logits' argmax on the last stage.
    slots: int32[num_rows].  positions: int32[num_rows], where the new token stands.
    """

    logits: torch.Tensor
    token_ids: torch.Tensor
    slots: torch.Tensor
    positions: torch.Tensor


@dataclass(frozen=True)
class _Captured:
    """inputs: int32[2 * rows + 1], slots, num_computed, and the turn.  token_ids: int64[turns,
    rows]; a replay writes those of its turn.  logits, slots and positions as in DecodeOutputs."""

    graph: torch.cuda.CUDAGraph
    inputs: torch.Tensor
    token_ids: torch.Tensor
    logits: torch.Tensor
    slots: torch.Tensor
    positions: torch.Tensor


class DecodeGraphs:
    """max_rows: rows of the largest graph; larger steps run eagerly.

    received: [max_rows, hidden_size] on a stage that is not the first, where the graphs read what
    the stage before sent.  makes_logits: False on a stage that is not the last.
    num_turns: replays after which a graph writes its greedy tokens to the same place again: more
    than steps are ever under way.
    """

    def __init__(
        self,
        *,
        model: CausalLM,
        pool: MHAPool,
        backend: AttentionBackend,
        batch: InputBatch,
        max_rows: int,
        received: torch.Tensor | None = None,
        makes_logits: bool = True,
        num_turns: int = 4,
    ) -> None:
        self._model = model
        self._received = received
        self._makes_logits = makes_logits
        self._num_turns = num_turns
        self._pool = pool
        self._backend = backend
        self._batch = batch
        self._sizes = ladder(max_rows)
        self._graphs: dict[tuple[int, int], _Captured] = {}
        self._memory = torch.cuda.graph_pool_handle()
        # One for all: cuBLAS keeps a workspace (32 MiB on Hopper) for every stream it ever ran on.
        self._warm_up_stream = torch.cuda.Stream(batch.device)
        self._turn = 0

    @property
    def max_rows(self) -> int:
        return self._sizes[-1]

    def capture_all(self) -> None:
        """Capture every size, largest first, so that the smaller ones fit in its memory."""
        for size in reversed(self._sizes):
            for variant in range(self._backend.graph_variants(size)):
                self._capture(size, variant)

    def run(
        self,
        slots: Int32Array,
        num_computed: Int32Array,
        received: torch.Tensor | None = None,
    ) -> DecodeOutputs:
        """A step of decode rows: at most `max_rows` slots, their histories' lengths.

        received: [num_rows, hidden_size] of the stage before, on all stages but the first.
        """
        rows = len(slots)
        size = self._sizes[bisect.bisect_left(self._sizes, rows)]
        self._turn = (self._turn + 1) % self._num_turns
        host = np.zeros(2 * size + 1, np.int32)
        host[:size] = _PADDING_SLOT
        host[:rows] = slots
        host[size : size + rows] = num_computed
        host[-1] = self._turn
        lengths = np.zeros(size, np.int32)
        lengths[:rows] = num_computed + 1
        variant = self._backend.graph_variant(lengths)
        self._backend.replay_plan(lengths, variant)
        captured = self._graphs[size, variant]
        if self._received is not None and received is not None:
            self._received[:rows].copy_(received)
        captured.inputs.copy_(torch.from_numpy(host).pin_memory(), non_blocking=True)
        captured.graph.replay()
        return DecodeOutputs(
            captured.logits[:rows],
            captured.token_ids[self._turn, :rows],
            captured.slots[:rows],
            captured.positions[:rows],
        )

    def _capture(self, size: int, variant: int) -> None:
        # The rows of the warm-up are padding: they run every kernel and write nothing.
        inputs = torch.zeros(2 * size + 1, dtype=torch.int32, device=self._batch.device)
        inputs[:size] = _PADDING_SLOT
        token_ids = torch.zeros(self._num_turns, size, dtype=torch.int64, device=self._batch.device)
        stream = self._warm_up_stream
        stream.wait_stream(torch.cuda.current_stream(self._batch.device))
        with torch.cuda.stream(stream):
            self._forward(inputs, token_ids, variant)
        torch.cuda.current_stream(self._batch.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # NCCL's own threads look at their events meanwhile, which is no part of the capture.
        mode = "thread_local"
        with torch.cuda.graph(graph, pool=self._memory, capture_error_mode=mode):
            logits, positions = self._forward(inputs, token_ids, variant)
        slots = inputs[:size]
        self._graphs[size, variant] = _Captured(graph, inputs, token_ids, logits, slots, positions)

    def _forward(
        self, inputs: torch.Tensor, token_ids: torch.Tensor, variant: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(logits, positions of the new tokens), which are written where they belong."""
        size = len(inputs) // 2
        slots, num_computed, turn = inputs.split([size, size, 1])
        batch = self._batch
        input_ids, positions, slot_mapping, cu_query_lens, seq_lens = expand_decode(
            slots, num_computed, batch.page_table, batch.token_buffer, batch.page_size
        )
        lengths = np.zeros(size, np.int32)
        meta = AttentionMetadata(
            num_decodes=size,
            num_prefills=0,
            seq_lens=seq_lens,
            query_lens=cu_query_lens[1:],
            cu_query_lens=cu_query_lens,
            page_table=row_pages(batch.page_table, slots, seq_lens, batch.page_size),
            slot_mapping=slot_mapping,
            positions=positions,
            host_seq_lens=lengths,
            host_query_lens=lengths,
        )
        self._backend.capture_plan(meta, variant)
        ctx = ForwardContext(meta, self._backend, self._pool.layers)
        embeds = None if self._received is None else self._received[:size]
        logits = self._model(input_ids, positions, ctx, input_embeds=embeds)
        if self._makes_logits:
            logits = self._model.compute_logits(logits)
            store_argmax(logits, batch.token_buffer, slots, seq_lens, token_ids, turn)
        return logits, seq_lens
