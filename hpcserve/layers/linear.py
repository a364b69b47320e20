"""Linear layers split over the tensor-parallel group, by output (column) or by input (row)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import nn

from hpcserve.distributed.parallel_state import TensorParallel
from hpcserve.errors import ConfigError
from hpcserve.layers.parameter import ShardId, WeightParameter, load_whole, weight_parameter
from hpcserve.ops.gemm import gated_linear, linear


class ReplicatedLinear(nn.Module):
    """y = x W^T + b, whole on every rank.  weight: [output_size, input_size]."""

    def __init__(self, input_size: int, output_size: int, *, bias: bool = False) -> None:
        super().__init__()
        shape = (output_size, input_size)
        self.weight = weight_parameter(shape, load_whole, {None: shape})
        self.bias = (
            weight_parameter((output_size,), load_whole, {None: (output_size,)}) if bias else None
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class OutputSlice:
    """Which output rows of a checkpoint tensor this rank holds, and where it keeps them."""

    full_size: int
    source_start: int
    size: int
    target_start: int = 0


class SlicedOutputLinear(nn.Module):
    """Base of the column-parallel layers: this rank holds some rows of one or several matrices.

    Returns this rank's columns of y, [..., sum of slice sizes]; nothing is communicated.
    """

    def __init__(
        self, input_size: int, slices: Mapping[ShardId, OutputSlice], *, bias: bool = False
    ) -> None:
        super().__init__()
        self.slices = dict(slices)
        rows = sum(part.size for part in self.slices.values())
        weight_shapes = {key: (part.full_size, input_size) for key, part in self.slices.items()}
        self.weight = weight_parameter((rows, input_size), self._load, weight_shapes)
        bias_shapes = {key: (part.full_size,) for key, part in self.slices.items()}
        self.bias = weight_parameter((rows,), self._load, bias_shapes) if bias else None

    def _load(self, param: WeightParameter, loaded: torch.Tensor, shard_id: ShardId) -> None:
        part = self.slices[shard_id]
        source = loaded.narrow(0, part.source_start, part.size)
        param.data.narrow(0, part.target_start, part.size).copy_(source)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias)


class ColumnParallelLinear(SlicedOutputLinear):
    """One matrix, its outputs split evenly over the ranks."""

    def __init__(
        self, input_size: int, output_size: int, tp: TensorParallel, *, bias: bool = False
    ) -> None:
        local = tp.split("output size", output_size)
        part = OutputSlice(output_size, tp.rank * local, local)
        super().__init__(input_size, {None: part}, bias=bias)


class MergedColumnParallelLinear(SlicedOutputLinear):
    """Several matrices of one input, each split evenly, fused; shard ids 0, 1, ... (gate, up)."""

    def __init__(
        self,
        input_size: int,
        output_sizes: Sequence[int],
        tp: TensorParallel,
        *,
        bias: bool = False,
    ) -> None:
        slices: dict[ShardId, OutputSlice] = {}
        start = 0
        for index, size in enumerate(output_sizes):
            local = tp.split("intermediate size", size)
            slices[index] = OutputSlice(size, tp.rank * local, local, start)
            start += local
        super().__init__(input_size, slices, bias=bias)

    def gated(self, x: torch.Tensor) -> torch.Tensor:
        """silu of the first of two matrices' outputs times the second's, [..., local size]."""
        return gated_linear(x, self.weight, self.bias)


class QKVParallelLinear(SlicedOutputLinear):
    """Query, key and value projections fused, split by heads; shard ids "q", "k", "v".

    With fewer KV heads than ranks, each KV head is held by size / num_kv_heads ranks in a row.
    """

    def __init__(
        self,
        hidden_size: int,
        head_dim: int,
        num_heads: int,
        num_kv_heads: int,
        tp: TensorParallel,
        *,
        bias: bool = False,
    ) -> None:
        local_heads, local_kv_heads = self.heads_of_rank(num_heads, num_kv_heads, tp)
        q_size, kv_size = local_heads * head_dim, local_kv_heads * head_dim
        kv_full = num_kv_heads * head_dim
        kv_start = tp.rank * num_kv_heads // tp.size * head_dim
        slices: dict[ShardId, OutputSlice] = {
            "q": OutputSlice(num_heads * head_dim, tp.rank * q_size, q_size),
            "k": OutputSlice(kv_full, kv_start, kv_size, q_size),
            "v": OutputSlice(kv_full, kv_start, kv_size, q_size + kv_size),
        }
        super().__init__(hidden_size, slices, bias=bias)
        self.num_heads = local_heads
        self.num_kv_heads = local_kv_heads
        self.sizes = [q_size, kv_size, kv_size]

    @staticmethod
    def heads_of_rank(num_heads: int, num_kv_heads: int, tp: TensorParallel) -> tuple[int, int]:
        """(query heads, KV heads) of one rank.

        Raises ConfigError when the group's size does not fit the model's heads.
        """
        local_heads = tp.split("attention heads", num_heads)
        if num_kv_heads >= tp.size:
            return local_heads, tp.split("key-value heads", num_kv_heads)
        if tp.size % num_kv_heads:
            raise ConfigError(
                f"tp_size {tp.size} is no multiple of the model's key-value heads ({num_kv_heads})"
            )
        return local_heads, 1


#: Who sums the parts of a row-parallel layer.
Sums: TypeAlias = Literal["here", "caller", "norm"]


class RowParallelLinear(nn.Module):
    """One matrix, its inputs split over the ranks; the partial results are summed over the group.

    x: [..., input_size / tp size] of this rank.  weight: [output_size, input_size / tp size].
    The bias is whole on every rank and added once, after the sum.
    sums: "here"; by the "caller", who adds more parts to it, there is no bias then; or by the next
    "norm" (RMSNorm.add_sum), for which the part is made where the other ranks may read it.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        tp: TensorParallel,
        *,
        bias: bool = False,
        sums: Sums = "here",
    ) -> None:
        super().__init__()
        self.tp = tp
        self.leaves_sum = sums == "norm"
        self._sums = sums == "here" and tp.size > 1
        self.local_size = tp.split("input size", input_size)
        self.weight = weight_parameter(
            (output_size, self.local_size), self._load, {None: (output_size, input_size)}
        )
        self.bias = (
            weight_parameter((output_size,), load_whole, {None: (output_size,)}) if bias else None
        )

    def _load(self, param: WeightParameter, loaded: torch.Tensor, shard_id: ShardId) -> None:
        param.data.copy_(loaded.narrow(1, self.tp.rank * self.local_size, self.local_size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.leaves_sum:
            # The first rank's part brings the bias.
            bias = self.bias if self.tp.rank == 0 else None
            out = self.tp.part((*x.shape[:-1], len(self.weight)), x.dtype, x.device)
            return linear(x, self.weight, bias, out=out)
        if not self._sums:
            return linear(x, self.weight, self.bias)
        y = self.tp.all_reduce(linear(x, self.weight))
        return y if self.bias is None else y + self.bias
