"""The parts of a mixture of experts, wherever they are held, add up to the whole."""

from __future__ import annotations

import pytest
import torch

from hpcserve.distributed.parallel_state import ExpertParallel, TensorParallel
from hpcserve.errors import ConfigError
from hpcserve.layers.moe import ExpertShape, SparseMoE
from hpcserve.models.llama import GatedMLP
from hpcserve.testing import fill_by_name

SHAPE = ExpertShape(num_experts=4, k=2, hidden_size=16, size=8, renormalize=True)


def _built(parallel: ExpertParallel, tp: TensorParallel, *, shared: bool) -> SparseMoE:
    expert = GatedMLP(16, 8, tp, bias=False, sums="caller") if shared else None
    layer = SparseMoE(SHAPE, parallel, tp, shared=expert)
    fill_by_name(layer)
    return layer


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("size", "slices"), [(1, 2), (2, 1), (2, 2), (4, 1)])
def test_ranks_add_up_to_one(size, slices, shared):
    x = torch.randn(5, 16)
    with torch.inference_mode():
        whole = _built(ExpertParallel(), TensorParallel(), shared=shared)(x)
        world = size * slices
        parts = [
            _built(
                ExpertParallel(rank // slices, size, rank % slices, slices),
                TensorParallel(rank, world),
                shared=shared,
            )(x)
            for rank in range(world)
        ]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-5, atol=1e-5)


def test_a_rank_without_tokens_adds_zeros():
    layer = _built(ExpertParallel(3, 4), TensorParallel(), shared=False)
    ids = torch.tensor([[0, 1], [2, 0]], dtype=torch.int32)
    with torch.inference_mode():
        out = layer.experts(torch.randn(2, 16), torch.full((2, 2), 0.5), ids)
    assert not out.any()


def test_what_does_not_divide_is_named():
    with pytest.raises(ConfigError, match=r"ep_size 3 .* experts \(4\)"):
        SparseMoE(SHAPE, ExpertParallel(0, 3), TensorParallel())
    with pytest.raises(ConfigError, match=r"expert size \(8\)"):
        SparseMoE(SHAPE, ExpertParallel(0, 1, 0, 3), TensorParallel())
