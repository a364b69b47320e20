"""The contract of a group's collectives, so that layers need not know what carries them."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch


class Communicator(ABC):
    """Collectives of one group; every rank calls the same ones in the same order."""

    @abstractmethod
    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over the group, the same bits on every rank; may reuse x's memory."""

    @abstractmethod
    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """[n, ...] of each rank -> [size * n, ...], in rank order; n is the same on every rank."""

    def all_gather_last(self, x: torch.Tensor) -> torch.Tensor:
        """[..., n] of each rank -> [..., size * n], in rank order."""
        parts = self.all_gather(x.unsqueeze(0))
        return parts.movedim(0, -2).flatten(-2)

    def reduce_scatter(self, x: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        """[size * n, ...] of each rank -> this rank's [n, ...] of the sum."""
        return self.all_reduce(x).chunk(size)[rank]
