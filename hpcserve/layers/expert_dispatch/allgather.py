"""Every rank gets all tokens, runs its experts on those that chose them, and the sums are shared
out again: all-gather, then reduce-scatter."""

from __future__ import annotations

import torch

from hpcserve.layers.expert_dispatch.base import ExpertDispatch, Route, RunExperts


class AllGatherDispatch(ExpertDispatch):
    """Replicas' tokens are padded to the most that one has."""

    def run(self, hidden: torch.Tensor, route: Route, experts: RunExperts) -> torch.Tensor:
        replicas = self.replicas
        tokens = replicas.gather(hidden)
        out = experts(tokens, *route(tokens))
        if self.group_size > replicas.size:
            # The ranks of a replica want the same rows, which no reduce-scatter gives.
            return replicas.own(self.comm.all_reduce(out))
        own = self.comm.reduce_scatter(out, replicas.rank, replicas.size)
        return own[: len(hidden)]


EntryClass = AllGatherDispatch
