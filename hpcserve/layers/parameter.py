"""A parameter that knows how to fill itself from the tensors of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import nn

#: Which of the checkpoint's tensors that are fused into one parameter: "q", "k", "v", 0, 1,
#: (expert, part); None where one tensor is the whole parameter.
ShardId: TypeAlias = str | int | tuple[int, int] | None
WeightLoader: TypeAlias = Callable[["WeightParameter", torch.Tensor, ShardId], None]


class WeightParameter(nn.Parameter):
    """A frozen parameter, uninitialised until each of its shards was loaded.

    weight_loader(param, loaded_tensor, shard_id): copies this rank's part of the whole checkpoint
    tensor into the parameter, converting to its dtype.
    full_shapes: shape in the checkpoint of each shard, before any split over ranks.
    """

    weight_loader: WeightLoader
    full_shapes: Mapping[ShardId, tuple[int, ...]]


def weight_parameter(
    shape: tuple[int, ...],
    weight_loader: WeightLoader,
    full_shapes: Mapping[ShardId, tuple[int, ...]],
) -> WeightParameter:
    """An empty parameter of torch's default dtype and device."""
    param = WeightParameter(torch.empty(shape), requires_grad=False)
    param.weight_loader = weight_loader
    param.full_shapes = full_shapes
    return param


def load_whole(param: WeightParameter, loaded: torch.Tensor, shard_id: ShardId) -> None:
    """The loader of a parameter that every rank holds in full."""
    param.data.copy_(loaded)
