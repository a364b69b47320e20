"""Mixture of experts in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def route(logits: torch.Tensor, k: int, renormalize: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The k likeliest experts of each token.

    logits: [num_tokens, num_experts].  renormalize: weights sum to 1 over the k experts.
    Returns (weights fp32 [num_tokens, k], expert ids int32 [num_tokens, k]), likeliest first; of
    equal ones the lower id first.
    """
    probs = logits.float().softmax(dim=-1)
    # A stable sort, since topk leaves the order of equal values open.
    weights, ids = probs.sort(dim=-1, descending=True, stable=True)
    weights, ids = weights[:, :k], ids[:, :k]
    if renormalize:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights.contiguous(), ids.int().contiguous()


def experts(
    hidden: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    weights: torch.Tensor,
    ids: torch.Tensor,
    first_expert: int,
) -> torch.Tensor:
    """The weighted sum of what each token's experts that are held here make of it.

    hidden: [num_tokens, hidden_size].  gate_up: [num_held, 2 * size, hidden_size], the rows of gate
    before those of up.  down: [num_held, hidden_size, size].  weights, ids: as from `route`.
    first_expert: id of gate_up[0]; experts with ids outside of what is held add nothing.
    Returns [num_tokens, hidden_size], summed in fp32.
    """
    out = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
    for index in range(gate_up.shape[0]):
        token, rank = (ids == first_expert + index).nonzero(as_tuple=True)
        if len(token) == 0:
            continue
        gate, up = F.linear(hidden[token], gate_up[index]).chunk(2, dim=-1)
        made = F.linear(F.silu(gate.float()).to(up.dtype) * up, down[index])
        out.index_add_(0, token, made.float() * weights[token, rank].unsqueeze(1))
    return out.to(hidden.dtype)
