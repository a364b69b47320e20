from __future__ import annotations

import pytest
import torch

from hpcserve.config.checkpoint import CheckpointConfig
from hpcserve.distributed.parallel_state import TensorParallel
from hpcserve.models.qwen2 import Qwen2ForCausalLM
from hpcserve.testing import make_random_checkpoint
from hpcserve.weights.dummy import fill_dummy_weights


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> CheckpointConfig:
    return CheckpointConfig.load(make_random_checkpoint(tmp_path_factory.mktemp("qwen2"), "qwen2"))


def _filled(checkpoint, seed=0, rank=0, size=1) -> dict[str, torch.Tensor]:
    model = Qwen2ForCausalLM(checkpoint, TensorParallel(rank, size), 64)
    fill_dummy_weights(model, seed)
    return {name: param.data for name, param in model.named_parameters()}


def test_every_parameter_is_filled_within_the_bounds(checkpoint):
    for param in _filled(checkpoint).values():
        assert param.abs().max() <= 1e-3
        assert param.std() > 4e-4


def test_seed_decides(checkpoint):
    one, same, other = _filled(checkpoint), _filled(checkpoint), _filled(checkpoint, seed=1)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)


def test_no_two_tensors_are_alike(checkpoint):
    params = _filled(checkpoint)
    one, two = (params[f"model.layers.{n}.mlp.gate_up_proj.weight"] for n in (0, 1))
    assert not torch.equal(one, two)
    assert not torch.equal(*one.chunk(2))


def test_ranks_hold_parts_of_the_whole(checkpoint):
    whole = _filled(checkpoint)
    parts = [_filled(checkpoint, rank=rank, size=2) for rank in range(2)]
    name = "model.layers.1.self_attn.o_proj.weight"
    assert torch.equal(torch.cat([part[name] for part in parts], dim=1), whole[name])
    name = "model.layers.1.mlp.gate_up_proj.weight"
    for index in range(2):
        rows = torch.cat([part[name].chunk(2)[index] for part in parts])
        assert torch.equal(rows, whole[name].chunk(2)[index])
