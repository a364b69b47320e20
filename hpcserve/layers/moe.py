"""The feed-forward half of a layer as a mixture of experts, split over the expert group.

Where every rank of the group has the same tokens, a rank runs its experts (or its slices of them)
on the tokens that chose them, and one sum over the group gives the whole. A rank that no token
chose adds zeros. Replicas that share experts have tokens of their own: see expert_dispatch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from hpcserve import registry
from hpcserve.distributed.parallel_state import ExpertParallel, TensorParallel
from hpcserve.layers.expert_dispatch.base import ExpertDispatch
from hpcserve.layers.expert_hits import ExpertHits
from hpcserve.layers.linear import ReplicatedLinear
from hpcserve.layers.parameter import ShardId, WeightParameter, weight_parameter
from hpcserve.ops import moe

#: Names of the modules whose weights hold all experts of a rank.
GATE_UP, DOWN = "expert_gate_up", "expert_down"
_GATE, _UP = 0, 1


@dataclass(frozen=True)
class ExpertShape:
    """num_experts of size `size`, of which each token takes k.

    renormalize: the weights of a token's experts sum to 1.
    """

    num_experts: int
    k: int
    hidden_size: int
    size: int
    renormalize: bool


def packed_experts(
    num_experts: int, names: tuple[str, str, str]
) -> Mapping[str, tuple[str, ShardId]]:
    """Of a checkpoint that names its matrices "<expert>.<gate, up or down>"."""
    gate, up, down = names
    packed: dict[str, tuple[str, ShardId]] = {}
    for expert in range(num_experts):
        packed[f"{expert}.{gate}"] = (GATE_UP, (expert, _GATE))
        packed[f"{expert}.{up}"] = (GATE_UP, (expert, _UP))
        packed[f"{expert}.{down}"] = (DOWN, (expert, 0))
    return packed


def _expert_part(shard_id: ShardId) -> tuple[int, int]:
    assert isinstance(shard_id, tuple), "the shards of experts are (expert, part)"
    return shard_id


class _GateUp(nn.Module):
    """weight: [num_held, 2 * local size, hidden_size]; shard ids (expert, 0 gate or 1 up)."""

    def __init__(self, shape: ExpertShape, held: range, parallel: ExpertParallel) -> None:
        super().__init__()
        self._first = held.start
        self._local = parallel.split("expert size", shape.size)
        self._start = parallel.slice_rank * self._local
        whole = (shape.size, shape.hidden_size)
        self.weight = weight_parameter(
            (len(held), 2 * self._local, shape.hidden_size),
            self._load,
            {(expert, part): whole for expert in held for part in (_GATE, _UP)},
        )

    def _load(self, param: WeightParameter, loaded: torch.Tensor, shard_id: ShardId) -> None:
        expert, part = _expert_part(shard_id)
        target = param.data[expert - self._first].narrow(0, part * self._local, self._local)
        target.copy_(loaded.narrow(0, self._start, self._local))


class _Down(nn.Module):
    """weight: [num_held, hidden_size, local size]; shard ids (expert, 0)."""

    def __init__(self, shape: ExpertShape, held: range, parallel: ExpertParallel) -> None:
        super().__init__()
        self._first = held.start
        self._local = parallel.split("expert size", shape.size)
        self._start = parallel.slice_rank * self._local
        whole = (shape.hidden_size, shape.size)
        self.weight = weight_parameter(
            (len(held), shape.hidden_size, self._local),
            self._load,
            {(expert, 0): whole for expert in held},
        )

    def _load(self, param: WeightParameter, loaded: torch.Tensor, shard_id: ShardId) -> None:
        expert, _ = _expert_part(shard_id)
        param.data[expert - self._first].copy_(loaded.narrow(1, self._start, self._local))


class Experts(nn.Module):
    """This rank's experts: what they add for each token, before the sum over the group."""

    # Under the names that checkpoints' tensors are mapped to.
    expert_gate_up: _GateUp
    expert_down: _Down

    def __init__(self, shape: ExpertShape, parallel: ExpertParallel) -> None:
        super().__init__()
        held = parallel.experts(shape.num_experts)
        self.first_expert = held.start
        # Named as in GATE_UP and DOWN.
        self.expert_gate_up = _GateUp(shape, held, parallel)
        self.expert_down = _Down(shape, held, parallel)

    def forward(
        self, hidden: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor
    ) -> torch.Tensor:
        gate_up, down = self.expert_gate_up.weight, self.expert_down.weight
        return moe.experts(hidden, gate_up, down, weights, ids, self.first_expert)


def _dispatch_of(
    shape: ExpertShape, parallel: ExpertParallel, tp: TensorParallel
) -> ExpertDispatch | None:
    """None where all ranks that hold the experts have the same tokens."""
    if parallel.replicas.size == 1:
        return None
    module = registry.load("hpcserve.layers.expert_dispatch", parallel.dispatch)
    entry: type[ExpertDispatch] = module.EntryClass
    return entry(parallel, tp, shape.num_experts)


class SparseMoE(nn.Module):
    """[num_tokens, hidden_size] -> the same.

    leaves_sum: what it returns is this rank's part, to be summed over the group; not so where
    replicas share the experts, whose tokens are then taken apart again.
    shared: an expert that every token takes, which must leave its sum over the TP group to us;
    `shared_expert_gate` then weights it.
    """

    def __init__(
        self,
        shape: ExpertShape,
        parallel: ExpertParallel,
        tp: TensorParallel,
        *,
        shared: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self._shape = shape
        self._tp = tp
        self._dispatch = _dispatch_of(shape, parallel, tp)
        self.leaves_sum = self._dispatch is None
        #: Counts the experts hit, where somebody asked.
        self.hits: ExpertHits | None = None
        self.gate = ReplicatedLinear(shape.hidden_size, shape.num_experts)
        self.experts = Experts(shape, parallel)
        self.shared_expert = shared
        self.shared_expert_gate = None if shared is None else ReplicatedLinear(shape.hidden_size, 1)

    @property
    def num_experts(self) -> int:
        return self._shape.num_experts

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        has_shared = self.shared_expert is not None
        if self._dispatch is None:  # one sum for both
            out = self._run(hidden, *self._route(hidden))
            return out + self._shared(hidden) if has_shared else out
        if not has_shared:
            return self._dispatch.run(hidden, self._route, self._run)
        shared = self._tp.all_reduce(self._shared(hidden))
        return self._dispatch.run(hidden, self._route, self._run) + shared

    def _shared(self, hidden: torch.Tensor) -> torch.Tensor:
        assert self.shared_expert is not None and self.shared_expert_gate is not None
        return self.shared_expert_gate(hidden).sigmoid() * self.shared_expert(hidden)

    def serve_others(self, dtype: torch.dtype, device: torch.device) -> None:
        """Run the experts for the other replicas, in a step in which this one has no token."""
        assert self._dispatch is not None, "only replicas that share experts serve others"
        nothing = torch.zeros(0, self._shape.hidden_size, dtype=dtype, device=device)
        self._dispatch.run(nothing, self._route, self._run)

    def _route(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(weights, ids) of the experts that each token takes."""
        if not len(tokens):
            none = torch.zeros(0, self._shape.k, device=tokens.device)
            return none, none.int()
        return moe.route(self.gate(tokens), self._shape.k, self._shape.renormalize)

    def _run(self, tokens: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """What the experts held here add for each token."""
        if self.hits is not None:
            self.hits.count(ids)
        out: torch.Tensor = self.experts(tokens, weights, ids)
        return out
