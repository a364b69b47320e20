from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hpcserve.distributed.parallel_state import TensorParallel
from hpcserve.engine import decode_graphs
from hpcserve.engine.input_batch import InputBatch
from hpcserve.layers.embedding import LogitShard

CPU = torch.device("cpu")
VOCAB, HIDDEN = 11, 4


class Recorder:
    """A replay runs the code again, into the memory of the first time."""

    def __init__(self, device):
        pass

    def capture(self, run):
        return run(), run


class Model:
    """Of token t, the likeliest next one is t + 1."""

    def __call__(self, input_ids, positions, ctx, input_embeds=None):
        return input_ids.float()[:, None].expand(-1, HIDDEN)

    def logit_shard(self, hidden, out=None):
        scores = -(hidden[:, :1] + 1 - torch.arange(VOCAB)).abs()
        logits = scores if out is None else out.copy_(scores)
        return LogitShard(logits, 0, VOCAB, TensorParallel())


@pytest.fixture
def graphs(monkeypatch):
    monkeypatch.setattr(decode_graphs, "make_recorder", Recorder)
    backend = SimpleNamespace(
        graph_variants=lambda rows: 2 if rows < 3 else 1,
        graph_variant=lambda lengths: int(len(lengths) < 3 and lengths.max() < 5),
        capture_plan=lambda meta, variant: None,
        replay_plan=lambda lengths, variant: None,
    )
    batch = InputBatch(max_slots=8, context_length=9, page_size=1, device=CPU)
    made = decode_graphs.DecodeGraphs(
        model=Model(),
        pool=SimpleNamespace(layers=[]),
        backend=backend,
        batch=batch,
        max_rows=8,
    )
    made.capture_all()
    return made


def test_logits_of_all_graphs_stand_in_those_of_the_largest(graphs):
    held = [captured.outputs.logits.logits for captured in graphs._graphs.values()]
    assert len(held) == 8 + 2
    assert {logits.data_ptr() for logits in held} == {graphs._logits.data_ptr()}
    assert max(len(logits) for logits in held) == len(graphs._logits) == 8


@pytest.mark.parametrize("slots", [[3], [0, 5], [1, 7, 2, 4, 0]])
def test_each_replay_has_its_own_logits_and_tokens(graphs, slots):
    batch = graphs._batch
    for turn in range(3):
        batch.token_buffer[slots, turn] = torch.arange(len(slots), dtype=torch.int32)
        computed = np.full(len(slots), turn, np.int32)
        outputs = graphs.run(np.array(slots, np.int32), computed)
        expected = list(range(1, len(slots) + 1))
        assert outputs.token_ids.tolist() == expected
        assert outputs.logits.logits.argmax(-1).tolist() == expected
        assert batch.token_buffer[slots, turn + 1].tolist() == expected
