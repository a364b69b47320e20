"""Captured decode steps, with a recorder that runs instead of capturing."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hpcserve.distributed.parallel_state import TensorParallel
from hpcserve.engine import decode_graphs
from hpcserve.engine.decode_graphs import DecodeGraphs, ladder
from hpcserve.engine.input_batch import InputBatch
from hpcserve.layers.embedding import ParallelLMHead

VOCAB, HIDDEN, MAX_ROWS = 32, 8, 40


class Recorder:
    """A replay runs again what was to be captured, which is where it writes that counts."""

    def __init__(self, device):
        self.captured = []

    def capture(self, run):
        outputs = run()
        self.captured.append(outputs)
        return outputs, lambda: outputs.hidden.copy_(run().hidden)


class Model:
    """The logits of a row depend on its last token alone."""

    def __init__(self):
        torch.manual_seed(0)
        self.table = torch.randn(VOCAB, HIDDEN)
        self.head = ParallelLMHead(VOCAB, HIDDEN, TensorParallel())
        self.head.weight.data.copy_(torch.randn(VOCAB, HIDDEN))

    def __call__(self, input_ids, positions, ctx, input_embeds=None):
        return self.table[input_ids.long()]

    def logit_shard(self, hidden, out=None):
        return self.head(hidden, out)


@pytest.fixture
def made(monkeypatch):
    monkeypatch.setattr(decode_graphs, "make_recorder", Recorder)
    batch = InputBatch(
        max_slots=MAX_ROWS, context_length=7, page_size=1, device=torch.device("cpu")
    )
    batch.token_buffer.copy_(torch.arange(batch.token_buffer.numel()).view(MAX_ROWS, -1) % VOCAB)
    nothing = SimpleNamespace(
        graph_variants=lambda rows: 2 if rows == 1 else 1,
        graph_variant=lambda lengths: 0,
        capture_plan=lambda meta, variant: None,
        replay_plan=lambda lengths, variant: None,
    )
    with torch.inference_mode():
        graphs = DecodeGraphs(
            model=Model(),
            pool=SimpleNamespace(layers=None),
            backend=nothing,
            batch=batch,
            max_rows=MAX_ROWS,
        )
        graphs.capture_all()
    return graphs


def test_all_sizes_share_the_memory_of_the_largest_ones_logits(made):
    captured = made._recorder.captured
    assert [len(one.hidden) for one in captured] == [*reversed(ladder(MAX_ROWS)), 1]
    assert {one.logits.logits.data_ptr() for one in captured} == {
        captured[0].logits.logits.data_ptr()
    }


@pytest.mark.parametrize("rows", [1, 2, 11, MAX_ROWS])
def test_logits_are_those_of_the_step(made, rows):
    model, batch = made._model, made._batch
    slots = np.arange(rows, dtype=np.int32)
    with torch.inference_mode():
        made.run(np.arange(MAX_ROWS, dtype=np.int32), np.full(MAX_ROWS, 5, np.int32))
        found = made.run(slots, np.full(rows, 3, np.int32))
        wanted = model.logit_shard(model.table[batch.token_buffer[:rows, 3].long()]).logits
        torch.testing.assert_close(found.logits.logits, wanted)
        assert found.token_ids.tolist() == wanted.argmax(-1).tolist()
