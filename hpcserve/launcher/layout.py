"""Nodes and GPUs per node from tp, pp and dp: pure arithmetic, the missing factor inferred."""

from __future__ import annotations

from dataclasses import dataclass

from hpcserve.config.parallel import divisors
from hpcserve.errors import ConfigError

#: Of a node whose size nobody said.
USUAL_NODE_GPUS = 8


@dataclass(frozen=True)
class Layout:
    """tp * pp * dp == nodes * ranks_per_node. gpus_per_node is 0 for an engine on CPUs.

    warning: a layout that works and is rarely meant, with the better one; else empty.
    """

    tp: int
    pp: int
    dp: int
    nodes: int
    ranks_per_node: int
    gpus_per_node: int
    warning: str = ""


def infer_layout(
    *,
    tp: int | None,
    pp: int | None,
    dp: int | None,
    nodes: int | None,
    gpus_per_node: int | None,
    node_gpus: int | None = None,
    on_gpus: bool = True,
) -> Layout:
    """Fill in what was not given (None).

    node_gpus: GPUs that a node of this cluster has, where that is known.
    Raises ConfigError with the whole product and the valid choices where it does not come out.
    """
    if tp is None and nodes is not None and gpus_per_node:
        tp = _missing_tp(pp or 1, dp or 1, nodes, gpus_per_node)
    tp, pp, dp = tp or 1, pp or 1, dp or 1
    world = tp * pp * dp
    nodes, per_node = _spread(
        world, nodes, gpus_per_node or None, node_gpus, f"tp {tp} x pp {pp} x dp {dp}"
    )
    if on_gpus and node_gpus is not None and per_node > node_gpus:
        fitting = [n for n in divisors(world) if world // n <= node_gpus]
        raise ConfigError(
            f"tp {tp} x pp {pp} x dp {dp} = {world} GPUs on {nodes} nodes needs {per_node} on each, "
            f"but nodes here have {node_gpus}; valid --nodes: {_listed(fitting)}"
        )
    return Layout(
        tp=tp,
        pp=pp,
        dp=dp,
        nodes=nodes,
        ranks_per_node=per_node,
        gpus_per_node=per_node if on_gpus else 0,
        warning=_warning(tp, pp, dp, nodes, per_node),
    )


def _missing_tp(pp: int, dp: int, nodes: int, gpus_per_node: int) -> int:
    total = nodes * gpus_per_node
    if total % (pp * dp):
        raise ConfigError(
            f"{nodes} nodes x {gpus_per_node} GPUs = {total}, which pp {pp} x dp {dp} = {pp * dp} "
            "does not divide"
        )
    return total // (pp * dp)


def _spread(
    world: int, nodes: int | None, per_node: int | None, node_gpus: int | None, product: str
) -> tuple[int, int]:
    """(nodes, ranks per node) for `world` ranks."""
    if nodes is None and per_node is None:
        size = node_gpus or USUAL_NODE_GPUS
        per_node = world if world <= size else size
    if nodes is None and per_node is not None:
        if world % per_node:
            raise ConfigError(
                f"{product} = {world} GPUs do not fill nodes of {per_node}; "
                f"valid --gpus-per-node: {_listed(divisors(world))}"
            )
        return world // per_node, per_node
    if nodes is not None and per_node is None:
        if world % nodes:
            raise ConfigError(
                f"{product} = {world} GPUs do not spread evenly over {nodes} nodes; "
                f"valid --nodes: {_listed(divisors(world))}"
            )
        return nodes, world // nodes
    if nodes is None or per_node is None or nodes * per_node != world:
        total = (nodes or 0) * (per_node or 0)
        raise ConfigError(
            f"{product} = {world} GPUs, but {nodes} nodes x {per_node} GPUs = {total}; "
            f"with {nodes} nodes take --tp {total} (or --tp {per_node} --pp {nodes})"
        )
    return nodes, per_node


def _warning(tp: int, pp: int, dp: int, nodes: int, per_node: int) -> str:
    if tp <= per_node or per_node == 1:
        return ""
    stages = tp // per_node
    return (
        f"tp {tp} crosses nodes of {per_node} GPUs: each layer waits for the network; "
        f"--tp {per_node} --pp {pp * stages} sends far less between nodes"
    )


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
