"""Distinct experts of a step, by its number of tokens."""

import json

import torch

from hpcserve.layers.expert_hits import ExpertHits


def test_means_by_number_of_tokens(tmp_path):
    hits = ExpertHits(6)
    hits.count(torch.tensor([[0, 1]], dtype=torch.int32))
    hits.count(torch.tensor([[5, 5]], dtype=torch.int32))
    hits.count(torch.tensor([[0, 1], [1, 2], [2, 3]], dtype=torch.int32))
    assert hits.means() == {1: 1.5, 3: 4.0}
    hits.reset()
    assert hits.means() == {}
    hits.count(torch.tensor([[4, 1]], dtype=torch.int32))
    hits.write(tmp_path / "hits.json")
    assert json.loads((tmp_path / "hits.json").read_text()) == {"1": 2.0}


def test_what_steps_counted_can_be_forgotten_between_steps():
    """Steps run in inference mode, what comes between them does not."""
    hits = ExpertHits(4)
    with torch.inference_mode():
        hits.count(torch.tensor([[0, 1]]))
    hits.reset()
    assert hits.means() == {}
    with torch.inference_mode():
        hits.count(torch.tensor([[3, 3]]))
    assert hits.means() == {1: 1.0}
