"""Every rank's place and groups, by arithmetic alone.

Ranks are numbered replica by replica, in it stage by stage, in that by tensor-parallel rank: the
groups that talk most stand on neighbouring GPUs, and a replica on as few nodes as can be.
"""

from __future__ import annotations

from dataclasses import dataclass

from hpcserve.config.parallel import ParallelConfig


@dataclass(frozen=True)
class Place:
    """Where one rank stands.

    local_rank: its number among the ranks of its node, which is its GPU.
    ep_rank: which part of the experts it holds.  expert_tp_rank: which slice of each of them.
    """

    rank: int
    dp_rank: int
    pp_rank: int
    tp_rank: int
    ep_rank: int
    expert_tp_rank: int
    node_rank: int
    local_rank: int

    def __str__(self) -> str:
        return (
            f"rank {self.rank} (dp {self.dp_rank}, pp {self.pp_rank}, tp {self.tp_rank}; "
            f"node {self.node_rank}, device {self.local_rank})"
        )


class Topology:
    """The layout of all ranks. Groups are tuples of global ranks in the order of the group."""

    def __init__(self, config: ParallelConfig) -> None:
        self.config = config

    def place(self, rank: int) -> Place:
        config = self.config
        tp_rank = rank % config.tp_size
        pp_rank = rank // config.tp_size % config.pp_size
        dp_rank = rank // config.replica_size
        # Its number in the group that holds a stage's experts.
        number = tp_rank + (dp_rank * config.tp_size if config.enable_dp_attention else 0)
        slices = config.expert_group_size // config.expert_size
        return Place(
            rank=rank,
            dp_rank=dp_rank,
            pp_rank=pp_rank,
            tp_rank=tp_rank,
            ep_rank=number // slices,
            expert_tp_rank=number % slices,
            node_rank=rank // config.ranks_per_node,
            local_rank=rank % config.ranks_per_node,
        )

    def rank(self, dp_rank: int, pp_rank: int, tp_rank: int) -> int:
        return (dp_rank * self.config.pp_size + pp_rank) * self.config.tp_size + tp_rank

    def replica(self, dp_rank: int) -> tuple[int, ...]:
        """All ranks of a replica."""
        first = dp_rank * self.config.replica_size
        return tuple(range(first, first + self.config.replica_size))

    def companions(self, dp_rank: int) -> tuple[int, ...]:
        """All ranks that step together with a replica's."""
        if self.config.enable_dp_attention:
            return tuple(range(self.config.world_size))
        return self.replica(dp_rank)

    def tp_group(self, rank: int) -> tuple[int, ...]:
        place = self.place(rank)
        sizes = range(self.config.tp_size)
        return tuple(self.rank(place.dp_rank, place.pp_rank, tp) for tp in sizes)

    def pp_group(self, rank: int) -> tuple[int, ...]:
        """The ranks that hand a step's hidden states on, first stage first."""
        place = self.place(rank)
        sizes = range(self.config.pp_size)
        return tuple(self.rank(place.dp_rank, pp, place.tp_rank) for pp in sizes)

    def dp_group(self, rank: int) -> tuple[int, ...]:
        """The same place in every replica."""
        place = self.place(rank)
        sizes = range(self.config.dp_size)
        return tuple(self.rank(dp, place.pp_rank, place.tp_rank) for dp in sizes)

    def expert_group(self, rank: int) -> tuple[int, ...]:
        """The ranks that hold the experts of this rank's layers together."""
        if not self.config.enable_dp_attention:
            return self.tp_group(rank)
        place = self.place(rank)
        config = self.config
        return tuple(
            self.rank(dp, place.pp_rank, tp)
            for dp in range(config.dp_size)
            for tp in range(config.tp_size)
        )

    def output_rank(self, dp_rank: int) -> int:
        """The rank that tells a replica's core what was sampled: the last stage's first."""
        return self.rank(dp_rank, self.config.pp_size - 1, 0)

    def on_node(self, node_rank: int) -> tuple[int, ...]:
        first = node_rank * self.config.ranks_per_node
        return tuple(range(first, first + self.config.ranks_per_node))

    def nodes_of(self, dp_rank: int) -> tuple[int, ...]:
        """The nodes of a replica's ranks, in order."""
        found = (self.place(rank).node_rank for rank in self.companions(dp_rank))
        return tuple(dict.fromkeys(found))

    def spans_nodes(self, dp_rank: int) -> bool:
        """Whether a replica's ranks are on more than one node."""
        return len(self.nodes_of(dp_rank)) > 1

    def core_node(self, dp_rank: int) -> int:
        """The node on which a replica's core runs: that of its first rank."""
        return self.place(self.replica(dp_rank)[0]).node_rank


def layer_range(num_layers: int, stage: int, num_stages: int) -> range:
    """The layers of a stage: as even as can be, the first stages take the remainder.

    The last stage also makes the logits, so it is never the one with a layer more.
    """
    each, more = divmod(num_layers, num_stages)
    first = stage * each + min(stage, more)
    return range(first, first + each + (1 if stage < more else 0))
