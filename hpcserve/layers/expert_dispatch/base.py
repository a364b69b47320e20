"""The contract of a dispatch: tokens to the ranks that hold their experts, and the sums back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

import torch

from hpcserve.distributed.comm_base import Communicator
from hpcserve.distributed.parallel_state import ExpertParallel, TensorParallel
from hpcserve.errors import ConfigError

#: tokens [n, hidden_size] -> (weights fp32 [n, k], expert ids int32 [n, k]).
Route: TypeAlias = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
#: (tokens [n, hidden_size], weights, ids) -> [n, hidden_size], the weighted sum over the experts
#: that this rank holds; ids of others, and -1, add nothing.
RunExperts: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class ExpertDispatch(ABC):
    """Of one rank; every rank of the expert group calls `run` in every step, in the same order.

    parallel.replicas.counts says how many tokens each replica has. While `is_fixed` is set there,
    neither shapes nor the host may depend on what the tokens are.
    """

    def __init__(self, parallel: ExpertParallel, tp: TensorParallel, num_experts: int) -> None:
        """tp: the ranks that have the same tokens as this one."""
        self.parallel = parallel
        self.replicas = parallel.replicas
        self.tp = tp
        self.num_experts = num_experts

    @property
    def comm(self) -> Communicator:
        """The collectives of all ranks that hold the experts, in the order of their numbers."""
        if self.parallel.comm is None:
            raise ConfigError("a rank without its group cannot share experts")
        return self.parallel.comm

    @property
    def group_size(self) -> int:
        """How many ranks that is."""
        return self.parallel.size * self.parallel.num_slices

    @abstractmethod
    def run(self, hidden: torch.Tensor, route: Route, experts: RunExperts) -> torch.Tensor:
        """[own tokens, hidden_size] -> the same, of all experts that each token takes."""
