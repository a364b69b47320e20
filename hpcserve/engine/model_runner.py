"""Runs steps: per-slot state in, one token a row out. It knows the device, not the scheduler."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from hpcserve.attention.base import AttentionBackend
from hpcserve.distributed.parallel_state import PipelineStage, ReplicaGather
from hpcserve.engine.constraints import Constraints
from hpcserve.engine.decode_graphs import DecodeGraphs
from hpcserve.engine.executor import StepHandle
from hpcserve.engine.grammar_compiler import GrammarCompiler
from hpcserve.engine.input_batch import InputBatch, StepInputs
from hpcserve.engine.prompt_logprobs import PromptLogprobs
from hpcserve.engine.sampler import Logprobs, Sampler
from hpcserve.engine.step_result import CudaStep, FinishedStep, StepTensors
from hpcserve.ipc.messages import Int32Array, SchedulerOutput
from hpcserve.kvcache.mha_pool import MHAPool
from hpcserve.layers.embedding import LogitShard
from hpcserve.layers.forward_context import ForwardContext
from hpcserve.models.base import CausalLM


class ModelRunner:
    """One rank's model with its pool and its slots.

    Nothing in `submit` waits for the device: lengths come from the step itself, and tokens that
    an earlier step samples are read from the token buffer on the device.
    """

    def __init__(
        self,
        *,
        model: CausalLM,
        pool: MHAPool,
        backend: AttentionBackend,
        max_slots: int,
        context_length: int,
        vocab_size: int,
        eos_token_ids: Iterable[int],
        device: torch.device,
        grammars: GrammarCompiler,
        stage: PipelineStage = PipelineStage(),
        hidden_size: int = 0,
        dtype: torch.dtype = torch.float32,
        replicas: ReplicaGather | None = None,
    ) -> None:
        """replicas: those that step together with this one, where experts are shared.

        stage, hidden_size, dtype: what is handed from stage to stage, where there are several."""
        self.model = model
        self.stage = stage
        self._replicas = replicas or ReplicaGather()
        self._hidden_size = hidden_size
        self._dtype = dtype
        # What is on its way to the next stage, kept until it has left.
        self._sending: tuple[torch.Tensor, Any] | None = None
        self.pool = pool
        self.backend = backend
        self.device = device
        self.batch = InputBatch(
            max_slots=max_slots,
            context_length=context_length,
            page_size=pool.page_size,
            device=device,
        )
        eos_token_ids = list(eos_token_ids)
        self.constraints = Constraints(grammars, vocab_size, eos_token_ids, device)
        self.sampler = Sampler(
            max_slots=max_slots,
            vocab_size=vocab_size,
            eos_token_ids=eos_token_ids,
            constraints=self.constraints,
            device=device,
        )
        self.prompt_logprobs = PromptLogprobs()
        self._graphs: DecodeGraphs | None = None
        self._copy_stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def submit(self, step: SchedulerOutput) -> StepHandle:
        """Issue one step; see SchedulerOutput for what it means."""
        with torch.inference_mode():
            tensors = self._run(step)
            handle: StepHandle
            if self._copy_stream is None:
                handle = FinishedStep(tensors)
            else:
                handle = CudaStep(tensors, self._copy_stream)
        if self.constraints and tensors.token_ids is not None:
            rows = tensors.sample_rows
            self.constraints.follow(handle, rows.tolist(), step.slots[rows].tolist())
        return handle

    def capture_graphs(self, backend: AttentionBackend, max_rows: int) -> None:
        """Capture decode steps of up to `max_rows` rows, which then attend with `backend`."""
        self._graphs = DecodeGraphs(
            model=self.model,
            pool=self.pool,
            backend=backend,
            batch=self.batch,
            replicas=self._replicas,
            max_rows=max_rows,
            received=None
            if self.stage.is_first
            else torch.zeros(max_rows, self._hidden_size, dtype=self._dtype, device=self.device),
            makes_logits=self.stage.is_last,
            # A pipeline has a step more under way than stages, others two.
            num_turns=self.stage.size + 3,
        )
        with torch.inference_mode():
            self._graphs.capture_all()

    def _run(self, step: SchedulerOutput) -> StepTensors:
        self.apply(step)
        if (rows := self._rows_of_graph(step)) is not None and self._graphs is not None:
            return self._replay(self._graphs, step, rows)
        if step.replica_tokens is not None:
            self._replicas.counts = step.replica_tokens
            if not len(step.slots):
                for layer in self.model.sparse_layers():
                    layer.serve_others(self._dtype, self.device)
        inputs = self.batch.prepare(step)
        if inputs is None:
            return StepTensors(step.step_id, 0, np.zeros(0, dtype=np.int64))
        hidden = self.forward(inputs)
        if not self.stage.is_last:
            self._hand_on(hidden)
            return StepTensors(step.step_id, len(step.slots), np.zeros(0, dtype=np.int64))
        prompts = {}
        if self.prompt_logprobs:
            prompts = self.prompt_logprobs.compute(
                inputs, hidden, self.batch, self.model.compute_logits
            )
        token_ids, logprobs = self._sample(inputs, hidden)
        return StepTensors(
            step.step_id, len(step.slots), inputs.sample_rows, token_ids, logprobs, prompts
        )

    def _rows_of_graph(self, step: SchedulerOutput) -> int | None:
        """Rows that a captured graph for this step must have, None where none can take it.

        Replicas that share experts take the same graph, those without a row too.
        """
        if step.replica_tokens is None:
            rows, fits = len(step.slots), 0 < len(step.slots) == step.num_decodes
        else:
            rows, fits = max(step.replica_tokens), step.all_decode and any(step.replica_tokens)
        graphs = self._graphs
        return rows if graphs is not None and fits and rows <= graphs.max_rows else None

    def _replay(self, graphs: DecodeGraphs, step: SchedulerOutput, at_least: int) -> StepTensors:
        """A step of decodes alone, as a captured graph of at least so many rows."""
        self.batch.write_pages(step)
        rows = len(step.slots)
        received = None if self.stage.is_first else self._take_over(rows)
        out = graphs.run(step.slots, step.num_computed, received, at_least=at_least)
        if rows == 0:
            return StepTensors(step.step_id, 0, np.zeros(0, dtype=np.int64))
        if not self.stage.is_last:
            # The next replay writes there, perhaps before this has left.
            self._hand_on(out.hidden.clone())
            return StepTensors(step.step_id, rows, np.zeros(0, dtype=np.int64))
        if self.sampler.takes_argmax(step.slots):
            return StepTensors(step.step_id, rows, np.arange(rows), out.token_ids)
        slots, positions = out.slots.long(), out.positions.long()
        assert out.logits is not None, "graphs of the last stage make logits"
        token_ids, logprobs = self._pick(
            out.logits, step.slots, step.num_computed + 1, slots, positions
        )
        self.batch.store(slots, positions, token_ids)
        return StepTensors(step.step_id, rows, np.arange(rows), token_ids, logprobs)

    def apply(self, step: SchedulerOutput) -> None:
        """Free the slots that were released, fill those of new requests."""
        for slot in step.released_slots:
            self._release(slot)
        for request in step.new_requests:
            self._release(request.slot)
            self.batch.add(request)
            self.sampler.add(request)
            if self.stage.is_last:
                self.constraints.add(request)
            self.prompt_logprobs.add(request)
        self.batch.learn(step)

    def _release(self, slot: int) -> None:
        self.sampler.release(slot)
        self.constraints.release(slot)
        self.prompt_logprobs.release(slot)

    def forward(self, inputs: StepInputs) -> torch.Tensor:
        """Hidden states of every token of the step after this stage, [num_tokens, hidden_size]."""
        self.backend.plan(inputs.meta)
        ctx = ForwardContext(inputs.meta, self.backend, self.pool.layers)
        received = None if self.stage.is_first else self._take_over(len(inputs.input_ids))
        hidden: torch.Tensor = self.model(
            inputs.input_ids, inputs.meta.positions, ctx, input_embeds=received
        )
        return hidden

    def _take_over(self, num_tokens: int) -> torch.Tensor:
        """[num_tokens, hidden_size] from the stage before."""
        return self.stage.receive((num_tokens, self._hidden_size), self._dtype, self.device)

    def _hand_on(self, hidden: torch.Tensor) -> None:
        if self._sending is not None:
            self._sending[1].wait()
        hidden = hidden.contiguous()
        self._sending = (hidden, self.stage.send(hidden))

    def _sample(
        self, inputs: StepInputs, hidden: torch.Tensor
    ) -> tuple[torch.Tensor | None, Logprobs | None]:
        rows = inputs.sample_rows
        if len(rows) == 0:
            return None, None
        last = hidden if inputs.last_tokens is None else hidden[inputs.last_tokens]
        token_ids, logprobs = self._pick(
            self.model.logit_shard(last),
            inputs.step.slots[rows],
            inputs.meta.host_seq_lens[rows],
            inputs.sample_slots,
            inputs.sample_positions,
        )
        self.batch.store(inputs.sample_slots, inputs.sample_positions, token_ids)
        return token_ids, logprobs

    def _pick(
        self,
        shard: LogitShard,
        host_slots: Int32Array,
        host_positions: Int32Array,
        slots: torch.Tensor,
        positions: torch.Tensor,
    ) -> tuple[torch.Tensor, Logprobs | None]:
        """See Sampler.sample. All ranks decide alike: what they decide by is the same on each."""
        if not shard.is_whole and self.sampler.takes_best(host_slots):
            return self.sampler.sample_best(shard, host_slots, slots, positions), None
        return self.sampler.sample(shard.whole(), host_slots, host_positions, slots, positions)
