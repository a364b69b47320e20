"""Which layout to take on given GPUs: the fewest GPUs per replica that hold the model well."""

from __future__ import annotations

from typing import Any

from hpcserve.config.parallel import divisors
from hpcserve.launcher.plan.estimate import Estimate, estimate
from hpcserve.launcher.plan.gpus import Gpu
from hpcserve.launcher.plan.shape import ModelShape

#: A replica that holds fewer sequences than this wastes its weights' reads.
GOOD_CONCURRENCY = 16


def suggest(
    shape: ModelShape, gpu: Gpu, *, node_gpus: int, nodes: int | None = None, **options: Any
) -> Estimate | None:
    """The best layout over `nodes` (default: as many as one replica needs); None if none fits.

    Within a node TP, across nodes PP (a layer's all-reduce is too slow there), DP with the rest.
    """
    replica = _smallest_replica(shape, gpu, node_gpus, nodes, options)
    if replica is None:
        return None
    per_replica = replica.tp * replica.pp
    total = (nodes or -(-per_replica // node_gpus)) * node_gpus
    dp = total // per_replica
    return estimate(shape, gpu, tp=replica.tp, pp=replica.pp, dp=dp, node_gpus=node_gpus, **options)


def _smallest_replica(
    shape: ModelShape, gpu: Gpu, node_gpus: int, nodes: int | None, options: dict[str, Any]
) -> Estimate | None:
    fitting = []
    for pp in range(1, (nodes or 16) + 1):
        if nodes is not None and nodes % pp:
            continue
        for tp in divisors(node_gpus) if pp == 1 else [node_gpus]:
            one = estimate(shape, gpu, tp=tp, pp=pp, node_gpus=node_gpus, **options)
            if one.fits:
                fitting.append(one)
        if any(one.concurrency >= GOOD_CONCURRENCY for one in fitting):
            break
    good = [one for one in fitting if one.concurrency >= GOOD_CONCURRENCY]
    return next(iter(good or fitting[-1:]), None)


def expert_parallel(shape: ModelShape, tp: int) -> int:
    """Groups of experts: as many as GPUs of the replica, where that divides the experts."""
    if not shape.num_experts or shape.num_experts % tp:
        return 1
    return tp
