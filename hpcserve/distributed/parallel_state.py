"""This process's place in each group, as objects that layers are given: no global state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from hpcserve.distributed.comm_base import Communicator, PeerParts
from hpcserve.distributed.topology import layer_range
from hpcserve.errors import ConfigError


@dataclass(frozen=True)
class TensorParallel:
    """This process's place in the group that splits each layer.

    comm: the collectives; without them (`None`) only size 1 may communicate, which is enough to
    build a layer and load any rank's shard.
    """

    rank: int = 0
    size: int = 1
    comm: Communicator | None = None

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
        """Sum over the group, perhaps in place; the tensor itself at size 1."""
        return x if self.size == 1 else _needed(self.comm).all_reduce(x)

    def part(
        self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor | None:
        """See Communicator.part; None at size 1."""
        return None if self.size == 1 else _needed(self.comm).part(shape, dtype, device)

    def peers(self, part: torch.Tensor) -> PeerParts | None:
        """See Communicator.peers; None at size 1."""
        return None if self.size == 1 else _needed(self.comm).peers(part)

    def settle(self) -> None:
        """See Communicator.settle."""
        if self.comm is not None:
            self.comm.settle()

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """Concatenate along the last dimension in rank order; the tensor itself at size 1."""
        return x if self.size == 1 else _needed(self.comm).all_gather_last(x)

    def all_gather_first(self, x: torch.Tensor) -> torch.Tensor:
        """Concatenate along the first dimension in rank order; the tensor itself at size 1."""
        return x if self.size == 1 else _needed(self.comm).all_gather(x)


@dataclass(frozen=True)
class PipelineStage:
    """This process's place among the stages that split the layers.

    previous, following: global ranks of the neighbours.  group: their process group.
    """

    rank: int = 0
    size: int = 1
    previous: int | None = None
    following: int | None = None
    group: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def is_last(self) -> bool:
        return self.rank == self.size - 1

    def layers(self, num_layers: int) -> range:
        """This stage's layers.  Raises ConfigError where there are fewer layers than stages."""
        if num_layers < self.size:
            raise ConfigError(
                f"pp_size {self.size} is more than the model's layers ({num_layers}); "
                f"valid: 1 to {num_layers}"
            )
        return layer_range(num_layers, self.rank, self.size)

    def receive(
        self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        """What the stage before sent, of a shape that both know."""
        out = torch.empty(shape, dtype=dtype, device=device)
        dist.recv(out, src=self.previous, group=self.group)
        return out

    def send(self, x: torch.Tensor) -> dist.Work | None:
        """Send to the next stage; x must live until the work, if one is returned, is done."""
        return dist.isend(x, dst=self.following, group=self.group)


class ReplicaGather:
    """The tokens of replicas that share experts, brought together and taken apart again.

    counts: tokens of each replica in this step; set before each.
    is_fixed: shapes may depend on the counts alone, not on what the tokens are.
    """

    def __init__(self, rank: int = 0, size: int = 1, comm: Communicator | None = None) -> None:
        self.rank = rank
        self.size = size
        self._comm = comm
        self.counts: list[int] = [0] * size
        self.is_fixed = False

    @contextmanager
    def fixed(self) -> Iterator[None]:
        """For what is captured, or measures how much memory a step may ever take."""
        self.is_fixed = True
        try:
            yield
        finally:
            self.is_fixed = False

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """[own tokens, ...] -> [size * most tokens, ...]: each replica's, padded with zeros."""
        if self.size == 1:
            return x
        padded = x
        if len(x) < max(self.counts):
            padded = x.new_zeros((max(self.counts), *x.shape[1:]))
            padded[: len(x)] = x
        return _needed(self._comm).all_gather(padded)

    def own(self, x: torch.Tensor) -> torch.Tensor:
        """This replica's part of what `gather` laid out."""
        if self.size == 1:
            return x
        first = self.rank * max(self.counts)
        return x[first : first + self.counts[self.rank]]


@dataclass(frozen=True)
class ExpertParallel:
    """This process's place in the group that holds a layer's experts.

    rank, size: which part of the experts.  slice_rank, num_slices: which part of each of them.
    comm: the collectives of all of them.  replicas: whose tokens the experts get.
    dispatch: how these come there, a module of layers/expert_dispatch.
    """

    rank: int = 0
    size: int = 1
    slice_rank: int = 0
    num_slices: int = 1
    comm: Communicator | None = None
    replicas: ReplicaGather = field(default_factory=ReplicaGather)
    dispatch: str = "allgather"

    def experts(self, num_experts: int) -> range:
        """The experts held here.  Raises ConfigError when they do not split evenly."""
        if num_experts % self.size:
            raise ConfigError(
                f"ep_size {self.size} does not divide the model's experts ({num_experts})"
            )
        each = num_experts // self.size
        return range(self.rank * each, (self.rank + 1) * each)

    def split(self, what: str, count: int) -> int:
        """`count` divided by the number of slices."""
        if count % self.num_slices:
            raise ConfigError(
                f"the {self.num_slices} GPUs that share each expert (tp_size / ep_size) do not "
                f"divide the model's {what} ({count}); raise ep_size"
            )
        return count // self.num_slices


@dataclass(frozen=True)
class ModelParallel:
    """All of a rank's places: what a model is built by."""

    tp: TensorParallel = field(default_factory=TensorParallel)
    stage: PipelineStage = field(default_factory=PipelineStage)
    experts: ExpertParallel = field(default_factory=ExpertParallel)


def _needed(comm: Communicator | None) -> Communicator:
    if comm is None:
        raise ConfigError("a rank without its group cannot communicate")
    return comm
