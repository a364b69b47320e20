"""Each (token, expert) pair's row times its expert's matrix, and the sum over a token's pairs."""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from . import align_triton
from .tuned import Config, Tiles, tiles


@triton.jit(do_not_specialize=["num_pairs"])
def _grouped_gemm_kernel(
    x_ptr,
    weight_ptr,
    out_ptr,
    pairs_ptr,
    experts_ptr,
    num_pairs,
    pairs_per_row,
    size_n,
    size_k,
    x_stride,
    expert_stride,
    weight_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    block = tl.program_id(1)
    expert = tl.load(experts_ptr + block).to(tl.int64)
    if expert >= 0:
        pair = tl.load(pairs_ptr + block * BLOCK_M + tl.arange(0, BLOCK_M))
        real = pair < num_pairs
        row = (pair // pairs_per_row).to(tl.int64)
        n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
        k = tl.arange(0, BLOCK_K)
        x_at = x_ptr + row[:, None] * x_stride + k[None, :]
        weight_at = weight_ptr + expert * expert_stride + n[None, :] * weight_stride + k[:, None]
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for start in range(0, size_k, BLOCK_K):
            rest = k < size_k - start
            x = tl.load(x_at + start, mask=real[:, None] & rest[None, :], other=0.0)
            weight = tl.load(
                weight_at + start, mask=rest[:, None] & (n < size_n)[None, :], other=0.0
            )
            acc = tl.dot(x, weight, acc, input_precision="ieee")
        out_at = out_ptr + pair.to(tl.int64)[:, None] * size_n + n[None, :]
        mask = real[:, None] & (n < size_n)[None, :]
        tl.store(out_at, acc.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _combine_kernel(
    made_ptr,
    weights_ptr,
    ids_ptr,
    out_ptr,
    size,
    first_expert,
    num_held,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros([BLOCK], tl.float32)
    for place in tl.static_range(K):
        expert = tl.load(ids_ptr + token * K + place) - first_expert + cols * 0
        held = (expert >= 0) & (expert < num_held) & (cols < size)
        weight = tl.load(weights_ptr + token * K + place)
        at = made_ptr + (token * K + place) * size + cols
        # What an expert of another rank would make was never written.
        made = tl.load(at, mask=held, other=0.0).to(tl.float32)
        acc += tl.where(held, weight * made, 0.0)
    tl.store(out_ptr + token * size + cols, acc.to(out_ptr.dtype.element_ty), mask=cols < size)


def grouped_gemm(
    x: torch.Tensor,
    weight: torch.Tensor,
    pairs: torch.Tensor,
    experts: torch.Tensor,
    num_pairs: int,
    pairs_per_row: int,
    config: Config,
) -> torch.Tensor:
    """x [rows, K] -> [num_pairs, N]: pair p is x[p // pairs_per_row] @ weight[its expert] ^T.

    pairs, experts: as from align, for blocks of config's BLOCK_M rows.  Pairs that are in no block
    are not written.
    """
    _, size_n, size_k = weight.shape
    block_m, block_n, block_k, warps, stages = config
    out = torch.empty(num_pairs, size_n, dtype=x.dtype, device=x.device)
    _grouped_gemm_kernel[(triton.cdiv(size_n, block_n), len(experts))](
        x,
        weight,
        out,
        pairs,
        experts,
        num_pairs,
        pairs_per_row,
        size_n,
        size_k,
        x.stride(0),
        weight.stride(0),
        weight.stride(1),
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        num_warps=warps,
        num_stages=stages,
    )
    return out


def combine(
    made: torch.Tensor,
    weights: torch.Tensor,
    ids: torch.Tensor,
    first_expert: int,
    num_held: int,
) -> torch.Tensor:
    """[num_tokens * k, size] -> [num_tokens, size]: each token's weighted sum over held experts."""
    num_tokens, k = ids.shape
    size = made.shape[1]
    out = torch.empty(num_tokens, size, dtype=made.dtype, device=made.device)
    block = min(1024, triton.next_power_of_2(size))
    _combine_kernel[(num_tokens, triton.cdiv(size, block))](
        made, weights, ids, out, size, first_expert, num_held, K=k, BLOCK=block
    )
    return out


@cache
def _device_name(device: torch.device) -> str | None:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def experts(
    hidden: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    weights: torch.Tensor,
    ids: torch.Tensor,
    first_expert: int,
    chosen: Tiles | None = None,
) -> torch.Tensor:
    """See reference.experts.  chosen: others than the tuned tiles."""
    from ..activation.silu_and_mul_triton import silu_and_mul

    num_tokens, k = ids.shape
    if num_tokens == 0:
        return torch.empty_like(hidden)
    if hidden.stride(1) != 1:
        hidden = hidden.contiguous()
    weights, ids = weights.contiguous(), ids.contiguous()  # not so where they were packed
    num_pairs, num_held = num_tokens * k, gate_up.shape[0]
    if chosen is None:
        chosen = tiles(num_pairs, num_held, *down.shape[1:], _device_name(hidden.device))
    pairs, blocks = align_triton.align(ids, chosen.gate_up[0], num_held, first_expert)
    inner = silu_and_mul(grouped_gemm(hidden, gate_up, pairs, blocks, num_pairs, k, chosen.gate_up))
    made = grouped_gemm(inner, down, pairs, blocks, num_pairs, 1, chosen.down)
    return combine(made, weights, ids, first_expert, num_held)
