"""Refuse before the queue wait what cannot work after it."""

from __future__ import annotations

from typing import Any

from hpcserve.errors import ConfigError, ModelNotFoundError
from hpcserve.launcher.layout import USUAL_NODE_GPUS
from hpcserve.launcher.plan.estimate import estimate
from hpcserve.launcher.plan.gpus import GIB, gpu
from hpcserve.launcher.plan.shape import load_shape
from hpcserve.launcher.plan.suggest import suggest
from hpcserve.launcher.request import JobRequest


def refuse_what_cannot_fit(request: JobRequest) -> None:
    """Raises ConfigError where the model does not fit the GPUs that were asked for.

    Says nothing where it cannot know: the cluster file names no GPU, or the model's config.json
    is not here (a name of the hub).
    """
    name = request.cluster.gpu
    if name is None or not request.layout.gpus_per_node:
        return
    kind = gpu(name)
    try:
        shape = load_shape(request.engine.model.model, request.engine.model.dtype)
    except ModelNotFoundError:
        return
    layout, config = request.layout, request.engine
    options: dict[str, Any] = {
        "context": config.model.context_length,
        "mem_fraction": config.cache.mem_fraction_static,
        "max_batched_tokens": config.scheduler.chunked_prefill_size,
        "max_num_seqs": config.scheduler.max_running_requests,
    }
    found = estimate(shape, kind, tp=layout.tp, pp=layout.pp, dp=layout.dp, **options)
    if found.fits:
        return
    node_gpus = request.cluster.node_gpus or max(USUAL_NODE_GPUS, layout.gpus_per_node)
    better = suggest(shape, kind, node_gpus=node_gpus, **options)
    advice = f"; --tp {better.tp} --pp {better.pp} would fit" if better else ""
    raise ConfigError(
        f"{request.engine.model.model} does not fit: its weights take "
        f"{found.weights_bytes / GIB:.1f} GiB on each {name} of {kind.memory_bytes / GIB:.0f} GiB, "
        f"which leaves {found.free_for_kv_bytes / GIB:.1f} GiB for the KV cache, "
        f"{found.kv_tokens:,} tokens, less than one sequence of {found.context:,}{advice} "
        "(--force submits all the same)"
    )
