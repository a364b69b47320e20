"""The tensor-parallel group, as an object that layers are given: no global state."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from hpcserve.errors import ConfigError


@dataclass(frozen=True)
class TensorParallel:
    """This process's place in the group that splits each layer.

    group: the process group of the collectives; without one (`None`) only size 1 may communicate,
    which is enough to build a layer and load any rank's shard.
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ConfigError(f"tensor-parallel rank {self.rank} is not in [0, {self.size})")

    def split(self, what: str, count: int) -> int:
        """`count` divided by the group's size.

        Raises ConfigError that names `what` when the division leaves a remainder.
        """
        if count % self.size:
            raise ConfigError(f"tp_size {self.size} does not divide the model's {what} ({count})")
        return count // self.size

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Sum over the group, in place; the tensor itself at size 1."""
        if self.size > 1:
            dist.all_reduce(x, group=self.group)
        return x

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """Concatenate along the last dimension in rank order; the tensor itself at size 1."""
        if self.size == 1:
            return x
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x.contiguous(), group=self.group)
        return torch.cat(parts, dim=-1)
