"""Choosing tokens: penalties, bias, filters, Gumbel-max sampling, log-probabilities.

Filters apply in the order temperature, top-k, top-p (over the renormalised top-k distribution),
min-p (relative to the largest probability); tokens that tie with the last one kept are kept.
Noise depends only on (seed, position, token id): see kernels/sampling/noise.py.
"""

from __future__ import annotations

import torch

from hpcserve.kernels.sampling import reference
from hpcserve.kernels.sampling.reference import top_logprobs
from hpcserve.ops._dispatch import kernel, use_kernel

__all__ = [
    "apply_logit_bias",
    "apply_penalties",
    "apply_token_mask",
    "argmax",
    "best_of_part",
    "choose",
    "sample",
    "store_argmax",
    "store_choice",
    "top_logprobs",
]


def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor:
    """One token per row of logits [B, V] (fp32 or bf16); returns int64 [B].

    temperature, top_p, min_p: fp32 [B]; top_k: int32 [B], off where <= 0 or >= V; seeds,
    positions: int64 [B], position being that of the new token in its sequence. Rows with a
    temperature below 1e-5 are greedy. On CUDA it waits for nothing and may be captured in a graph.
    """
    run = reference.sample
    if use_kernel(logits):
        run = kernel("sampling.sample_triton").sample
    return run(logits, temperature, top_k, top_p, min_p, seeds, positions)


def argmax(logits: torch.Tensor) -> torch.Tensor:
    """int64 [B]: the likeliest token of each row of logits [B, V]; the least id wins a tie."""
    run = reference.argmax
    if use_kernel(logits):
        run = kernel("sampling.argmax_triton").argmax
    return run(logits)


def store_argmax(
    logits: torch.Tensor,
    token_buffer: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    outputs: torch.Tensor,
    turn: torch.Tensor,
) -> None:
    """The argmax of row i goes to outputs[turn, i] and to token_buffer[slots[i], positions[i]].

    logits: [B, V].  token_buffer: int32 [max_slots, L].  slots, positions: int32 [B]; rows with a
    slot below 0 are padding and leave the buffer alone.  outputs: int64 [turns, B].  turn: int32
    [1] on the device, so that replays of one CUDA graph may take turns with its outputs.
    """
    run = reference.store_argmax
    if use_kernel(logits):
        run = kernel("sampling.argmax_triton").store_argmax
    run(logits, token_buffer, slots, positions, outputs, turn)


def best_of_part(
    logits: torch.Tensor,
    first_id: int,
    size: int,
    draw: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """fp32 [B, 2]: score and token id of the best token of a part of the vocabulary.

    See kernels/sampling/reference.py.
    """
    run = reference.best_of_part
    if use_kernel(logits):
        run = kernel("sampling.shard_triton").best_of_part
    return run(logits, first_id, size, draw)


def choose(pairs: torch.Tensor) -> torch.Tensor:
    """int64 [B]: the token of the best score of pairs fp32 [parts, B, 2]."""
    run = reference.choose
    if use_kernel(pairs):
        run = kernel("sampling.shard_triton").choose
    return run(pairs)


def store_choice(
    pairs: torch.Tensor,
    token_buffer: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    outputs: torch.Tensor,
    turn: torch.Tensor,
) -> None:
    """`choose`, stored as `store_argmax` stores it."""
    run = reference.store_choice
    if use_kernel(pairs):
        run = kernel("sampling.shard_triton").store_choice
    run(pairs, token_buffer, slots, positions, outputs, turn)


def apply_penalties(
    logits: torch.Tensor,
    output_counts: torch.Tensor,
    prompt_mask: torch.Tensor,
    frequency: torch.Tensor,
    presence: torch.Tensor,
    repetition: torch.Tensor,
) -> torch.Tensor:
    """Penalise tokens seen before; in place, returns logits [B, V].

    output_counts: int32 [B, V]; prompt_mask: bool [B, V]; frequency, presence, repetition:
    fp32 [B]. Repetition looks at prompt and output, the others at the output.
    """
    run = reference.apply_penalties
    if use_kernel(logits):
        run = kernel("sampling.penalties_triton").apply_penalties
    return run(logits, output_counts, prompt_mask, frequency, presence, repetition)


def apply_logit_bias(
    logits: torch.Tensor, rows: torch.Tensor, token_ids: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """logits[rows[i], token_ids[i]] += bias[i], in place; returns logits [B, V].

    rows, token_ids: int [n], each pair at most once, padding where the row is below 0; bias:
    fp32 [n], -inf forbids a token.
    """
    run = reference.apply_logit_bias
    if use_kernel(logits):
        run = kernel("sampling.penalties_triton").apply_logit_bias
    return run(logits, rows, token_ids, bias)


def apply_token_mask(logits: torch.Tensor, mask: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """logits[rows[i], t] = -inf where bit t of mask[i] is 0, in place; returns logits [B, V].

    mask: int32 [n, at least V / 32], 32 tokens a number, the lowest bit first; rows: int [n], each
    row at most once.
    """
    run = reference.apply_token_mask
    if use_kernel(logits):
        run = kernel("sampling.token_mask_triton").apply_token_mask
    return run(logits, mask, rows)
