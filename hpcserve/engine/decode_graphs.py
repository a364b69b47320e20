"""CUDA graphs of steps whose rows are all decodes: from slots to greedy tokens in one launch.

One graph per number of rows of a ladder; a step takes the next larger one, its last rows are
padding that writes nothing. The graphs read the token buffer and the page table themselves, so a
step sends two numbers a row. They also write the likeliest token of each row to the token buffer;
where another one is sampled from the logits, it is written over it.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from hpcserve.attention.base import AttentionBackend, AttentionMetadata
from hpcserve.distributed.parallel_state import ReplicaGather
from hpcserve.engine.input_batch import InputBatch
from hpcserve.ipc.messages import Int32Array
from hpcserve.kvcache.mha_pool import MHAPool
from hpcserve.layers.embedding import LogitShard
from hpcserve.layers.forward_context import ForwardContext
from hpcserve.models.base import CausalLM
from hpcserve.ops.metadata import expand_decode, row_pages
from hpcserve.ops.sampling import store_argmax, store_choice

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

    hidden: [num_rows, hidden_size].  logits: this rank's part; None on a stage that is not the
    last.  token_ids: int64[num_rows], the logits' argmax on the last stage.
    slots: int32[num_rows].  positions: int32[num_rows], where the new token stands.
    """

    hidden: torch.Tensor
    logits: LogitShard | None
    token_ids: torch.Tensor
    slots: torch.Tensor
    positions: torch.Tensor


@dataclass(frozen=True)
class ForwardOutputs:
    """What one forward pass leaves; as in DecodeOutputs."""

    hidden: torch.Tensor
    logits: LogitShard | None
    positions: torch.Tensor


class GraphRecorder:
    """Captures what runs on a GPU; all graphs share their memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory = torch.cuda.graph_pool_handle()
        # One for all: cuBLAS keeps a workspace (32 MiB on Hopper) for every stream it ever ran on.
        self._warm_up_stream = torch.cuda.Stream(device)

    def capture(
        self, run: Callable[[], ForwardOutputs]
    ) -> tuple[ForwardOutputs, Callable[[], None]]:
        """Run once to warm up, then capture.  Returns (where outputs will stand, what replays)."""
        stream = self._warm_up_stream
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # NCCL's own threads look at their events meanwhile, which is no part of the capture.
        mode = "thread_local"
        with torch.cuda.graph(graph, pool=self._memory, capture_error_mode=mode):
            outputs = run()
        return outputs, graph.replay


make_recorder: Callable[[torch.device], GraphRecorder] = GraphRecorder


@dataclass(frozen=True)
class _Captured:
    """inputs: int32[2 * rows + 1], slots, num_computed, and the turn.  token_ids: int64[turns,
    rows]; a replay writes those of its turn.  The others as in DecodeOutputs."""

    replay: Callable[[], None]
    inputs: torch.Tensor
    token_ids: torch.Tensor
    outputs: ForwardOutputs
    slots: torch.Tensor


class DecodeGraphs:
    """max_rows: rows of the largest graph; larger steps run eagerly.

    received: [max_rows, hidden_size] on a stage that is not the first, where the graphs read what
    the stage before sent.  makes_logits: False on a stage that is not the last.
    replicas: those that share experts; each graph gathers as many tokens of each as it has rows.
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
        replicas: ReplicaGather | None = None,
        num_turns: int = 4,
    ) -> None:
        self._replicas = replicas or ReplicaGather()
        self._model = model
        self._received = received
        self._makes_logits = makes_logits
        self._num_turns = num_turns
        self._pool = pool
        self._backend = backend
        self._batch = batch
        self._sizes = ladder(max_rows)
        self._graphs: dict[tuple[int, int], _Captured] = {}
        self._recorder = make_recorder(batch.device)
        self._turn = 0
        # Of the largest graph; the others write to its first rows. Each its own would be gigabytes.
        self._logits: torch.Tensor | None = None

    @property
    def max_rows(self) -> int:
        return self._sizes[-1]

    def capture_all(self) -> None:
        """Capture every size, largest first, so that the smaller ones fit in its memory, and their
        logits in its logits."""
        for size in reversed(self._sizes):
            for variant in range(self._backend.graph_variants(size)):
                self._capture(size, variant)

    def run(
        self,
        slots: Int32Array,
        num_computed: Int32Array,
        received: torch.Tensor | None = None,
        *,
        at_least: int = 0,
    ) -> DecodeOutputs:
        """A step of decode rows: at most `max_rows` slots, their histories' lengths.

        at_least: rows that the graph must have.
        received: [num_rows, hidden_size] of the stage before, on all stages but the first.
        """
        rows = len(slots)
        size = self._sizes[bisect.bisect_left(self._sizes, max(rows, at_least))]
        self._replicas.counts = [size] * self._replicas.size
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
        staged = torch.from_numpy(host)
        if self._batch.device.type == "cuda":
            staged = staged.pin_memory()
        captured.inputs.copy_(staged, non_blocking=True)
        captured.replay()
        outputs = captured.outputs
        return DecodeOutputs(
            outputs.hidden[:rows],
            None if outputs.logits is None else outputs.logits.first_rows(rows),
            captured.token_ids[self._turn, :rows],
            captured.slots[:rows],
            outputs.positions[:rows],
        )

    def _capture(self, size: int, variant: int) -> None:
        # The rows of the warm-up are padding: they run every kernel and write nothing.
        inputs = torch.zeros(2 * size + 1, dtype=torch.int32, device=self._batch.device)
        inputs[:size] = _PADDING_SLOT
        token_ids = torch.zeros(self._num_turns, size, dtype=torch.int64, device=self._batch.device)
        self._replicas.counts = [size] * self._replicas.size
        outputs, replay = self._recorder.capture(lambda: self._forward(inputs, token_ids, variant))
        self._graphs[size, variant] = _Captured(replay, inputs, token_ids, outputs, inputs[:size])

    def _forward(
        self, inputs: torch.Tensor, token_ids: torch.Tensor, variant: int
    ) -> ForwardOutputs:
        """The outputs, and tokens written where they belong."""
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
        hidden = self._model(input_ids, positions, ctx, input_embeds=embeds)
        if not self._makes_logits:
            return ForwardOutputs(hidden, None, seq_lens)
        logits = self._model.logit_shard(
            hidden, None if self._logits is None else self._logits[:size]
        )
        if self._logits is None:
            self._logits = logits.logits
        places = (batch.token_buffer, slots, seq_lens, token_ids, turn)
        if logits.is_whole:
            store_argmax(logits.logits, *places)
        else:
            store_choice(logits.best_of_parts(), *places)
        return ForwardOutputs(hidden, logits, seq_lens)
