"""Memory and speed of a layout: what fits on each GPU, and how fast it could be at best."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from hpcserve.launcher.plan.gpus import GIB, Gpu
from hpcserve.launcher.plan.shape import ModelShape

#: CUDA's context and libraries, once per process.
CONTEXT_BYTES = int(0.7 * GIB)
#: NCCL's buffers and symmetric memory, where GPUs work together.
COMMUNICATION_BYTES = int(0.5 * GIB)
#: One captured step keeps about so many activations per token of its batch, over all sizes.
GRAPH_COPIES = 3
#: One all-reduce of a few KB over NVLink, and over a network; seconds.
LATENCY_S = {"node": 8e-6, "network": 30e-6}


@dataclass(frozen=True)
class Estimate:
    """Bytes are of the fullest GPU; tokens of one replica; speeds of the whole layout, at best.

    largest_context: longest sequence that fits alone.  concurrency: sequences of `context` tokens.
    """

    tp: int
    pp: int
    dp: int
    fits: bool
    weights_bytes: int
    kv_bytes_per_token: int
    activation_bytes: int
    graph_bytes: int
    free_for_kv_bytes: int
    kv_tokens: int
    largest_context: int
    context: int
    concurrency: int
    decode_ms_one: float
    decode_tokens_per_s: float
    prefill_tokens_per_s: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def estimate(
    shape: ModelShape,
    gpu: Gpu,
    *,
    tp: int = 1,
    pp: int = 1,
    dp: int = 1,
    node_gpus: int = 8,
    context: int | None = None,
    mem_fraction: float = 0.88,
    max_batched_tokens: int = 8192,
    max_num_seqs: int = 1024,
) -> Estimate:
    """context: tokens of prompt and answer that requests are taken to have; default 4096."""
    context = min(context or 4096, shape.max_positions)
    weights = shape.weights_bytes(tp, pp)
    activation = _activation_bytes(shape, tp, max_batched_tokens, max_num_seqs)
    graphs = int(GRAPH_COPIES * max_num_seqs * shape.hidden_size * 16 + 0.2 * GIB)
    fixed = (
        weights + activation + graphs + CONTEXT_BYTES + (COMMUNICATION_BYTES if tp * pp > 1 else 0)
    )
    free = int(gpu.memory_bytes * mem_fraction - fixed)
    per_token = shape.kv_bytes_per_token(tp, pp)
    tokens = max(0, int(free // per_token))
    sequences = min(max_num_seqs, tokens // context)
    return Estimate(
        tp=tp,
        pp=pp,
        dp=dp,
        fits=sequences >= 1,
        weights_bytes=int(weights),
        kv_bytes_per_token=int(per_token),
        activation_bytes=activation,
        graph_bytes=graphs,
        free_for_kv_bytes=max(0, free),
        kv_tokens=tokens,
        largest_context=min(tokens, shape.max_positions),
        context=context,
        concurrency=sequences * dp,
        decode_ms_one=1e3 * _decode_s(shape, gpu, tp, pp, 1, context, node_gpus),
        decode_tokens_per_s=dp * _throughput(shape, gpu, tp, pp, sequences, context, node_gpus),
        prefill_tokens_per_s=dp * tp * pp * gpu.flops / (2.0 * shape.active),
    )


def _activation_bytes(shape: ModelShape, tp: int, tokens: int, sequences: int) -> int:
    """The widest moment of a step: some copies of the hidden state, the MLP's middle, the logits."""
    middle = shape.mlp / max(1, shape.num_layers) / (3 * shape.hidden_size) / tp
    if shape.num_experts:
        middle = max(middle, 2.0 * shape.hidden_size)
    return int(tokens * (6 * shape.hidden_size + 2 * middle) * 2 + sequences * shape.vocab_size * 8)


def _decode_s(
    shape: ModelShape, gpu: Gpu, tp: int, pp: int, batch: int, context: int, node_gpus: int
) -> float:
    """One step for `batch` sequences: bytes moved or arithmetic, whichever takes longer, and the
    two all-reduces of every layer. Stages of a pipeline run one after the other."""
    read = _weights_read(shape, batch) / (tp * pp)
    cache = batch * shape.kv_bytes_per_token(tp, pp) * context
    moved = (read + cache) / gpu.bandwidth
    computed = 2.0 * shape.active * batch / (tp * pp * gpu.flops)
    step = max(moved, computed)
    if tp > 1:
        kind = "node" if tp <= node_gpus else "network"
        size = batch * shape.hidden_size * 2
        step += 2 * shape.num_layers / pp * (LATENCY_S[kind] + 2 * size / gpu.link_bytes_s)
    return step * pp


def _weights_read(shape: ModelShape, batch: int) -> float:
    """Bytes of weights that a step reads: of the experts those that any token uses."""
    always = shape.parameters - shape.experts - shape.vocab_size * shape.hidden_size
    if not shape.num_experts:
        return always * shape.weight_bytes
    used = (shape.active - always) / shape.experts if shape.experts else 0.0
    share = 1.0 - (1.0 - min(1.0, max(0.0, used))) ** batch
    return (always + share * shape.experts) * shape.weight_bytes


def _throughput(
    shape: ModelShape, gpu: Gpu, tp: int, pp: int, batch: int, context: int, node_gpus: int
) -> float:
    """Tokens/s of one replica with `batch` sequences; a full pipeline works on all stages at once."""
    if batch < 1:
        return 0.0
    return batch / _decode_s(shape, gpu, tp, pp, batch, context, node_gpus) * pp
