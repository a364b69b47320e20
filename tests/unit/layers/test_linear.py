"""What the ranks compute, put together, is what one rank computes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hpcserve.distributed.parallel_state import TensorParallel
from hpcserve.errors import ConfigError
from hpcserve.layers.embedding import VocabParallelEmbedding
from hpcserve.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)


class _Collective(TensorParallel):
    """Collects what each rank brings, since there is one process."""

    def all_reduce(self, x):
        return x


def _ranks(size):
    return [_Collective(rank, size) for rank in range(size)]


def _load(layer, weights, bias=None):
    for shard_id, weight in weights.items():
        layer.weight.weight_loader(layer.weight, weight, shard_id)
        if bias is not None:
            layer.bias.weight_loader(layer.bias, bias[shard_id], shard_id)
    return layer


@pytest.mark.parametrize("size", [1, 2, 4])
def test_column(size):
    x, weight, bias = torch.randn(3, 8), torch.randn(12, 8), torch.randn(12)
    parts = [
        _load(ColumnParallelLinear(8, 12, tp, bias=True), {None: weight}, {None: bias})(x)
        for tp in _ranks(size)
    ]
    torch.testing.assert_close(torch.cat(parts, dim=-1), F.linear(x, weight, bias))


@pytest.mark.parametrize("size", [2, 4])
def test_row_adds_the_bias_once(size):
    x, weight, bias = torch.randn(3, 8), torch.randn(5, 8), torch.randn(5)
    layers = [
        _load(RowParallelLinear(8, 5, tp, bias=True), {None: weight}, {None: bias})
        for tp in _ranks(size)
    ]
    summed = sum(layer(part) - bias for layer, part in zip(layers, x.chunk(size, -1), strict=True))
    torch.testing.assert_close(summed + bias, F.linear(x, weight, bias))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_merged(size):
    x, gate, up = torch.randn(3, 8), torch.randn(12, 8), torch.randn(4, 8)
    parts = [
        _load(MergedColumnParallelLinear(8, [12, 4], tp), {0: gate, 1: up})(x)
        for tp in _ranks(size)
    ]
    gates, ups = zip(*(part.split([12 // size, 4 // size], -1) for part in parts), strict=True)
    torch.testing.assert_close(torch.cat(gates, -1), x @ gate.T)
    torch.testing.assert_close(torch.cat(ups, -1), x @ up.T)


@pytest.mark.parametrize(("size", "kv_heads"), [(1, 2), (2, 2), (4, 2), (4, 1), (2, 4)])
def test_qkv_gives_each_query_head_its_kv_head(size, kv_heads):
    heads, dim = 8, 2
    # Row r of each matrix holds the number of its head.
    q = torch.arange(heads).repeat_interleave(dim)[:, None].expand(-1, 3).float()
    k = torch.arange(kv_heads).repeat_interleave(dim)[:, None].expand(-1, 3).float()
    for tp in _ranks(size):
        layer = QKVParallelLinear(3, dim, heads, kv_heads, tp, bias=True)
        biases = {"q": q[:, 0], "k": k[:, 0], "v": 10 + k[:, 0]}
        _load(layer, {"q": q, "k": k, "v": 10 + k}, biases)
        q_part, k_part, v_part = layer.weight[:, 0].split(layer.sizes)
        assert torch.equal(layer.bias, layer.weight[:, 0])
        mine = q_part[::dim].long()
        group = mine * kv_heads // heads
        local = torch.arange(len(mine)) * layer.num_kv_heads // layer.num_heads
        assert torch.equal(k_part[::dim][local], group.float())
        assert torch.equal(v_part[::dim][local], 10 + group.float())


@pytest.mark.parametrize("size", [1, 2, 4])
def test_embedding_of_a_vocabulary_that_does_not_divide(size):
    table, ids = torch.randn(7, 3), torch.arange(7)
    parts = [_load(VocabParallelEmbedding(7, 3, tp), {None: table})(ids) for tp in _ranks(size)]
    torch.testing.assert_close(sum(parts), table)


def test_replicated():
    x, weight, bias = torch.randn(3, 8), torch.randn(5, 8), torch.randn(5)
    layer = _load(ReplicatedLinear(8, 5, bias=True), {None: weight}, {None: bias})
    torch.testing.assert_close(layer(x), F.linear(x, weight, bias))


def test_sizes_that_do_not_fit():
    with pytest.raises(ConfigError, match=r"tp_size 4 does not divide .*\(6\)"):
        ColumnParallelLinear(8, 6, TensorParallel(0, 4))
    with pytest.raises(ConfigError, match=r"no multiple of .*\(3\)"):
        QKVParallelLinear(8, 2, 12, 3, TensorParallel(0, 4))
    with pytest.raises(ConfigError, match="rank 4"):
        TensorParallel(4, 4)
