"""Every rank sends its tokens to the ranks that hold their experts, and gets back what these made
of them: two all-to-alls.

The ranks of a replica, which have the same tokens, send a part of them each. A token travels with
its experts and their weights in one row of bytes, once to each rank, however many of its experts
are there; a rank sums over its own experts, the sender over the ranks.

Few tokens go to every rank, in parts of equal size that nothing but their number decides: nothing
waits for the host, so that the step may be captured. Of many, each rank gets those that it needs;
then the host must know how many that are, which takes a wait a layer.
"""

from __future__ import annotations

import torch

from hpcserve.layers.expert_dispatch.base import ExpertDispatch, Route, RunExperts
from hpcserve.ops import moe

#: Most tokens of a rank that are sent in parts of equal size. Not measured yet: see
#: `benchmarks/parallel_check.py dispatch`.
FIXED_ROWS = 1024


class AllToAllDispatch(ExpertDispatch):
    def run(self, hidden: torch.Tensor, route: Route, experts: RunExperts) -> torch.Tensor:
        tp = self.tp
        capacity = -(-max(self.replicas.counts) // tp.size)
        own = hidden[tp.rank * capacity : (tp.rank + 1) * capacity]
        weights, ids = route(own)
        if self.replicas.is_fixed or capacity <= FIXED_ROWS:
            made = self._by_capacity(own, weights, ids, experts, capacity)
        else:
            made = self._by_need(own, weights, ids, experts)
        if tp.size == 1 or not len(hidden):
            return made[: len(hidden)]
        padded = made.new_zeros((capacity, made.shape[1]))
        padded[: len(made)] = made
        return tp.all_gather_first(padded)[: len(hidden)]

    def _by_capacity(
        self,
        own: torch.Tensor,
        weights: torch.Tensor,
        ids: torch.Tensor,
        experts: RunExperts,
        capacity: int,
    ) -> torch.Tensor:
        """Room for `capacity` tokens from every rank to every rank; what is empty has no expert."""
        size = self.group_size
        rows = moe.pack(own, weights, ids, capacity, size)
        taken = self.comm.all_to_all(rows.flatten(0, 1))
        made = experts(*moe.unpack(taken, own.shape[1], ids.shape[1], own.dtype))
        back = self.comm.all_to_all(made).view(size, capacity, -1)
        return back.sum(0)[: len(own)]

    def _by_need(
        self, own: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, experts: RunExperts
    ) -> torch.Tensor:
        """To each rank only the tokens that take one of its experts."""
        wanted = self._wanted(ids)
        _, number = wanted.nonzero(as_tuple=True)
        counts = wanted.sum(1)
        both = torch.stack((counts, self.comm.all_to_all(counts)))
        sent, taken = both.tolist()
        rows = moe.pack(own, weights, ids, len(own), 1)[0][number]
        got = self.comm.all_to_all(rows, sent, taken)
        made = experts(*moe.unpack(got, own.shape[1], ids.shape[1], own.dtype))
        back = self.comm.all_to_all(made, taken, sent)
        out = torch.zeros(own.shape, dtype=torch.float32, device=own.device)
        # Rank after rank: in a part each token is there once, so that the sum has one order.
        for part, tokens in zip(back.split(sent), number.split(sent), strict=True):
            out.index_add_(0, tokens, part.float())
        return out.to(own.dtype)

    def _wanted(self, ids: torch.Tensor) -> torch.Tensor:
        """bool [ranks, tokens]: whether a token takes an expert of that rank.

        By comparison, since ids may be anything while memory is measured with weights unread.
        """
        each = self.num_experts // self.parallel.size
        parts = torch.arange(self.parallel.size, device=ids.device)[:, None, None]
        of_part = ((ids >= parts * each) & (ids < (parts + 1) * each)).any(-1)
        return of_part.repeat_interleave(self.parallel.num_slices, dim=0)


EntryClass = AllToAllDispatch
