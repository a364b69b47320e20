"""Layouts that are valid and that this version cannot run: refused before anything starts."""

from __future__ import annotations

from hpcserve.config.engine import EngineConfig
from hpcserve.distributed.topology import Topology
from hpcserve.errors import ConfigError


def check_layout(config: EngineConfig) -> None:
    """Raises ConfigError with the nearest layout that works."""
    parallel = config.parallel
    if parallel.enable_dp_attention and (parallel.pp_size > 1 or parallel.nnodes > 1):
        raise ConfigError(
            f"enable_dp_attention with pp_size {parallel.pp_size} and nnodes {parallel.nnodes} is "
            "not supported yet; it runs with pp_size 1 on one node"
        )
    if parallel.enable_dp_attention and config.scheduler.enable_overlap:
        raise ConfigError("enable_dp_attention runs without --enable-overlap-schedule for now")
    topology = Topology(parallel)
    spanning = any(topology.spans_nodes(dp_rank) for dp_rank in range(parallel.dp_size))
    if parallel.dp_size > 1 and spanning:
        raise ConfigError(
            f"{parallel.product()} GPUs on {parallel.nnodes} nodes: replicas that span nodes are not "
            f"supported yet where there are several; choose tp_size x pp_size so that it divides "
            f"the {parallel.ranks_per_node} GPUs of a node, or dp_size 1"
        )
