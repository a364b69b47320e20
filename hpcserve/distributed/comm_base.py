"""The contract of a group's collectives, so that layers need not know what carries them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class PeerOutputs:
    """Where every rank of a group wants a sum's results, and the others may write them.

    memory: this rank's, [2, rows, size], normed and total; it lives until the second sum from this
    one.  addresses: of each rank's.
    """

    memory: torch.Tensor
    addresses: tuple[int, ...]


@dataclass(frozen=True)
class PeerParts:
    """One sum's parts, on every rank of a group that reads each other's memory.

    addresses: of each rank's part.  flags: int64 [size], addresses of flags by which ranks meet.
    meetings: int32, this rank's count of them.  See kernels/comm.
    outputs: given where ranks should sum some rows each and push them to the others; else each
    sums all.
    """

    addresses: tuple[int, ...]
    flags: torch.Tensor
    meetings: torch.Tensor
    rank: int
    outputs: PeerOutputs | None = None


class Communicator(ABC):
    """Collectives of one group; every rank calls the same ones in the same order."""

    @abstractmethod
    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over the group, the same bits on every rank; may reuse x's memory."""

    @abstractmethod
    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """[n, ...] of each rank -> [size * n, ...], in rank order; n is the same on every rank."""

    @abstractmethod
    def all_to_all(
        self, x: torch.Tensor, sent: list[int] | None = None, taken: list[int] | None = None
    ) -> torch.Tensor:
        """The first sent[0] rows of x go to rank 0, the next sent[1] to rank 1, and so on; returns
        taken[r] rows of each rank r, in rank order. Without sizes, all are equal."""

    def part(
        self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor | None:
        """Memory for this rank's part of the next sum, where the others may read it.

        What was made there goes to `peers`, or to `all_reduce`, which then copies nothing. It may
        be written again two parts later. None where there is none, or the part is too large.
        """
        return None

    def peers(self, part: torch.Tensor) -> PeerParts | None:
        """What a kernel needs to sum all ranks' parts by itself; None where `all_reduce` is better.

        part: [rows, size], in memory from `part` or not. The answer depends on its shape and dtype
        alone: sums of one shape that follow each other are made the same way.
        """
        return None

    def settle(self) -> None:  # noqa: B027 (most have nothing to settle)
        """After each step: the next one's first part may be written."""

    def all_gather_last(self, x: torch.Tensor) -> torch.Tensor:
        """[..., n] of each rank -> [..., size * n], in rank order."""
        parts = self.all_gather(x.unsqueeze(0))
        return parts.movedim(0, -2).flatten(-2)

    def reduce_scatter(self, x: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        """[size * n, ...] of each rank -> this rank's [n, ...] of the sum."""
        return self.all_reduce(x).chunk(size)[rank]
