"""x [M, K] @ W [N, K]^T for few rows: streaming W once is the whole cost.

The product is computed as W x^T, so that the tile of W fills the rows of the tensor-core
instruction and the few rows of x its columns (padded to 16, 32 or 64). Where N alone gives too few
programs, K is split: each program writes its fp32 part, and the last one to arrive at a tile (a
counter tells) adds the parts in the order of K. The counter decides who adds, never in which order,
so results are the same every time.

With GATES, W holds gate over up, a tile has rows of both, and silu(gate) * up is stored.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from ..launch.dependent import options, prefetch, release, wait
from .tuned import GATED, TUNED, Config, Table

#: Rows that a program may have, its padding included.
BLOCKS_M = (16, 32, 64)
MAX_ROWS = BLOCKS_M[-1]
#: Columns of its rows of the weight that a program fetches before its turn comes.
PREFETCH = 256
#: Tiles of N that split-K may have: the smallest tile on a vocabulary of 262,144.
MAX_TILES = 16384

#: Configurations that benchmarks try for up to 16 rows; the fastest go to tuned.py.
CANDIDATES: tuple[Config, ...] = (
    (16, 256, 1, 4, 5),
    (32, 256, 1, 4, 5),
    (64, 128, 1, 4, 5),
    (64, 256, 1, 4, 4),
    (32, 256, 2, 4, 5),
    (64, 128, 2, 4, 5),
    (64, 256, 2, 4, 4),
    (128, 128, 2, 8, 4),
    (32, 256, 4, 4, 5),
    (64, 128, 4, 4, 5),
    (64, 256, 4, 4, 4),
    (128, 128, 4, 8, 4),
    (64, 128, 8, 4, 5),
)
#: And for more: their rows take as much shared memory as the weight's.
WIDE_CANDIDATES: tuple[Config, ...] = (
    (64, 64, 1, 4, 5),
    (64, 128, 1, 4, 3),
    (64, 128, 1, 4, 4),
    (128, 64, 1, 4, 4),
    (128, 64, 1, 8, 4),
    (128, 128, 1, 8, 3),
    (64, 64, 2, 4, 5),
    (64, 128, 2, 4, 3),
    (128, 64, 2, 8, 4),
    (64, 64, 3, 4, 5),
    (64, 128, 3, 4, 4),
    (64, 64, 4, 4, 5),
    (64, 128, 4, 4, 3),
    (128, 64, 4, 8, 4),
)


@triton.jit
def _store_gated(acc, out_ptr, tile, m, rows, width, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """silu of the tile's first half of rows times its second."""
    HALF: tl.constexpr = BLOCK_N // 2
    kind = out_ptr.dtype.element_ty
    gate, up = tl.split(tl.permute(tl.reshape(acc, (2, HALF, BLOCK_M)), (1, 2, 0)))
    # Rounded as they would be in memory.
    gate, up = gate.to(kind).to(tl.float32), up.to(kind).to(tl.float32)
    gated = gate / (1.0 + tl.exp(-gate)) * up
    n = tile * HALF + tl.arange(0, HALF)
    mask = (m < rows)[None, :] & (n < width)[:, None]
    tl.store(out_ptr + m[None, :] * width + n[:, None], gated.to(kind), mask=mask)


@triton.jit
def _finish(
    acc,
    bias_ptr,
    residual_ptr,
    out_ptr,
    tile,
    n,
    m,
    rows,
    size_n,
    residual_stride,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    GATES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Add bias and residual in fp32 to the tile acc [BLOCK_N, BLOCK_M], round once and store."""
    mask = (m < rows)[None, :] & (n < size_n)[:, None]
    if HAS_BIAS:
        bias = tl.load(bias_ptr + n, mask=n < size_n, other=0.0)
        acc += bias.to(tl.float32)[:, None]
    if HAS_RESIDUAL:
        at = m[None, :] * residual_stride + n[:, None]
        acc += tl.load(residual_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if GATES:
        _store_gated(acc, out_ptr, tile, m, rows, size_n // 2, BLOCK_M, BLOCK_N)
    else:
        out = acc.to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + m[None, :] * size_n + n[:, None], out, mask=mask)


@triton.jit(do_not_specialize=["rows"])
def _small_m_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    out_ptr,
    part_ptr,
    counter_ptr,
    rows,
    size_n,
    size_k,
    x_stride,
    weight_stride,
    residual_stride,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    GATES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    PREFETCH: tl.constexpr,
    PDL: tl.constexpr,
):
    tile = tl.program_id(0)
    split = tl.program_id(1)
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    if GATES:
        HALF: tl.constexpr = BLOCK_N // 2
        inner = tl.arange(0, BLOCK_N)
        n = (inner // HALF) * (size_n // 2) + tile * HALF + inner % HALF
    m = tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    blocks = size_k // BLOCK_K
    first = blocks * split // SPLIT_K
    if PDL:
        release()
        rows_at = weight_ptr + n.to(tl.int64) * weight_stride
        prefetch(rows_at, first * BLOCK_K, size_k, PREFETCH)
        wait()
    weight_at = weight_ptr + n.to(tl.int64)[:, None] * weight_stride + k[None, :]
    x_at = x_ptr + m[None, :] * x_stride + k[:, None]
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for block in range(first, blocks * (split + 1) // SPLIT_K):
        weight = tl.load(weight_at + block * BLOCK_K)
        x = tl.load(x_at + block * BLOCK_K, mask=(m < rows)[None, :], other=0.0)
        acc = tl.dot(weight, x, acc, input_precision="ieee")
    if SPLIT_K == 1:
        _finish(
            acc,
            bias_ptr,
            residual_ptr,
            out_ptr,
            tile,
            n,
            m,
            rows,
            size_n,
            residual_stride,
            HAS_BIAS,
            HAS_RESIDUAL,
            GATES,
            BLOCK_M,
            BLOCK_N,
        )
    else:
        inside = tl.arange(0, BLOCK_N)[:, None] * BLOCK_M + m[None, :]
        part_at = part_ptr + tile * SPLIT_K * BLOCK_N * BLOCK_M + inside
        tl.store(part_at + split * BLOCK_N * BLOCK_M, acc)
        # All threads have stored before one of them publishes it to the other programs.
        tl.debug_barrier()
        arrived = tl.atomic_add(counter_ptr + tile, 1, sem="acq_rel")
        if arrived == SPLIT_K - 1:
            total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
            for index in tl.static_range(SPLIT_K):
                # .cg reads from L2, where the other programs' parts are.
                total += tl.load(part_at + index * BLOCK_N * BLOCK_M, cache_modifier=".cg")
            _finish(
                total,
                bias_ptr,
                residual_ptr,
                out_ptr,
                tile,
                n,
                m,
                rows,
                size_n,
                residual_stride,
                HAS_BIAS,
                HAS_RESIDUAL,
                GATES,
                BLOCK_M,
                BLOCK_N,
            )
            tl.store(counter_ptr + tile, 0)


@cache
def _counters(device: torch.device) -> torch.Tensor:
    """Zeros that every launch leaves as zeros. Made by the first call, which must not be inside a
    graph capture; launches that share a device must share a stream."""
    return torch.zeros(MAX_TILES, dtype=torch.int32, device=device)


@cache
def _device_table(device: torch.device, gates: bool) -> Table:
    return (GATED if gates else TUNED).get(torch.cuda.get_device_name(device), {})


def tuned_config(x: torch.Tensor, weight: torch.Tensor, gates: bool = False) -> Config | None:
    """The measured configuration for these shapes, or None where cuBLAS is the better choice."""
    table = _device_table(x.device, gates)
    if not table or x.element_size() != 2:
        return None
    size_n, size_k = weight.shape
    rows = x.numel() // size_k
    return table.get((triton.next_power_of_2(max(rows, 1)), size_n, size_k))


def fits(config: Config, size_n: int, size_k: int) -> bool:
    """Whether a configuration divides the weight into whole tiles."""
    block_n, block_k, split_k, _, _ = config
    return (
        size_n % block_n == 0
        and size_k % block_k == 0
        and size_k // block_k >= split_k
        and size_n // block_n <= MAX_TILES
    )


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    config: Config,
    gates: bool = False,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """See reference.linear, or with `gates` (and no residual) reference.gated_linear; at most
    MAX_ROWS rows, and `fits(config, *weight.shape)` must hold."""
    size_n, size_k = weight.shape
    rows = x.reshape(-1, size_k)
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    other = rows if residual is None else residual.reshape(-1, size_n)
    if other.stride(1) != 1:
        other = other.contiguous()
    block_n, block_k, split_k, warps, stages = config
    block_m = next(size for size in BLOCKS_M if size >= len(rows))
    tiles = size_n // block_n
    if out is None:
        width = size_n // 2 if gates else size_n
        out = torch.empty((*x.shape[:-1], width), dtype=x.dtype, device=x.device)
    parts = counters = out
    if split_k > 1:
        size = tiles * split_k * block_n * block_m
        parts = torch.empty(size, dtype=torch.float32, device=out.device)
        counters = _counters(out.device)
    _small_m_kernel[(tiles, split_k)](
        rows,
        weight,
        out if bias is None else bias,
        other,
        out,
        parts,
        counters,
        len(rows),
        size_n,
        size_k,
        rows.stride(0),
        weight.stride(0),
        other.stride(0),
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
        GATES=gates,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        SPLIT_K=split_k,
        PREFETCH=PREFETCH,
        num_warps=warps,
        num_stages=stages,
        **options(x),
    )
    return out
