"""Collectives of torch.distributed: NCCL on GPUs, gloo on CPUs."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from hpcserve.distributed.comm_base import Communicator

# torch 2.13 gave them new names and warns of the old ones.
_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_to_all: Any = dist.all_to_all_single


class TorchComm(Communicator):
    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self._size = dist.get_world_size(group)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous()
        dist.all_reduce(x, group=self._group)
        return x

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        out = x.new_empty((self._size * x.shape[0], *x.shape[1:]))
        _all_gather(out, x.contiguous(), group=self._group)
        return out

    def reduce_scatter(self, x: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        if x.device.type == "cpu":  # not every gloo has it
            return super().reduce_scatter(x, rank, size)
        out = x.new_empty((x.shape[0] // size, *x.shape[1:]))
        _reduce_scatter(out, x.contiguous(), group=self._group)
        return out

    def all_to_all(
        self, x: torch.Tensor, sent: list[int] | None = None, taken: list[int] | None = None
    ) -> torch.Tensor:
        out = x.new_empty((len(x) if taken is None else sum(taken), *x.shape[1:]))
        _all_to_all(out, x.contiguous(), taken, sent, group=self._group)
        return out
