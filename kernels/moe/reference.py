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


def row_layout(hidden_size: int, k: int, dtype: torch.dtype) -> tuple[int, int]:
    """(where the weights begin, bytes in all) of a packed token; the ids follow the weights.

    Hidden states and rows begin at multiples of 16 bytes, as kernels like them.
    """
    weights_at = _aligned(hidden_size * dtype.itemsize)
    return weights_at, _aligned(weights_at + 2 * 4 * k)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // 16) * 16


def pack(
    hidden: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, capacity: int, copies: int
) -> torch.Tensor:
    """Each token with its experts as one row of bytes, all of them `copies` times.

    hidden: [num_tokens, hidden_size].  weights: fp32 [num_tokens, k].  ids: int32 [num_tokens, k].
    capacity: rows of a copy, at least num_tokens; rows beyond these have experts -1.
    Returns uint8 [copies, capacity, bytes], as row_layout says.
    """
    num_tokens, k = ids.shape
    _, num_bytes = row_layout(hidden.shape[1], k, hidden.dtype)
    rows = torch.zeros(capacity, num_bytes, dtype=torch.uint8, device=hidden.device)
    views = unpack(rows, hidden.shape[1], k, hidden.dtype)
    views[2].fill_(-1)
    for view, values in zip(views, (hidden, weights, ids), strict=True):
        view[:num_tokens] = values
    return rows.expand(copies, -1, -1).contiguous()


def unpack(
    rows: torch.Tensor, hidden_size: int, k: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(hidden, weights, ids) as views of packed rows uint8 [num_rows, bytes]."""
    weights_at, _ = row_layout(hidden_size, k, dtype)
    hidden = rows[:, : hidden_size * dtype.itemsize].view(dtype)
    weights = rows[:, weights_at : weights_at + 4 * k].view(torch.float32)
    ids = rows[:, weights_at + 4 * k : weights_at + 8 * k].view(torch.int32)
    return hidden, weights, ids
