"""Softmax over the experts and the k likeliest of them, one program a token."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _route_kernel(
    logits_ptr,
    weights_ptr,
    ids_ptr,
    row_stride,
    num_experts,
    K: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    experts = tl.arange(0, BLOCK_E)
    inside = experts < num_experts
    logits = tl.load(logits_ptr + row * row_stride + experts, mask=inside, other=-float("inf"))
    logits = logits.to(tl.float32)
    exps = tl.exp(logits - tl.max(logits, 0))
    left = tl.where(inside, exps / tl.sum(exps, 0), -1.0)
    places = tl.arange(0, BLOCK_K)
    weights = tl.zeros([BLOCK_K], tl.float32)
    ids = tl.zeros([BLOCK_K], tl.int32)
    for place in tl.static_range(K):
        best = tl.max(left, 0)
        # Of equal ones the lowest id.
        chosen = tl.min(tl.where(left == best, experts, BLOCK_E), 0)
        weights = tl.where(places == place, best, weights)
        ids = tl.where(places == place, chosen, ids)
        left = tl.where(experts == chosen, -1.0, left)
    if RENORMALIZE:
        weights = weights / tl.sum(weights, 0)
    mask = places < K
    tl.store(weights_ptr + row * K + places, weights, mask=mask)
    tl.store(ids_ptr + row * K + places, ids, mask=mask)


def route(logits: torch.Tensor, k: int, renormalize: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """See reference.route."""
    num_tokens, num_experts = logits.shape
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    weights = torch.empty(num_tokens, k, dtype=torch.float32, device=logits.device)
    ids = torch.empty(num_tokens, k, dtype=torch.int32, device=logits.device)
    if num_tokens:
        _route_kernel[(num_tokens,)](
            logits,
            weights,
            ids,
            logits.stride(0),
            num_experts,
            K=k,
            RENORMALIZE=renormalize,
            BLOCK_E=triton.next_power_of_2(num_experts),
            BLOCK_K=triton.next_power_of_2(k),
            num_warps=1,
        )
    return weights, ids
