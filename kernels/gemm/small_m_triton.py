"""x [M, K] @ W [N, K]^T for few rows: streaming W once is the whole cost.

The product is computed as W x^T, so that the tile of W fills the rows of the tensor-core
instruction and the few rows of x its columns (padded to 16). Where N alone gives too few programs,
K is split: each program writes its fp32 part, and the last one to arrive at a tile (a counter
tells) adds the parts in the order of K. The counter decides who adds, never in which order, so
results are the same every time.

With GATES, W holds gate over up, a tile has rows of both, and silu(gate) * up is stored.

A norm between two of these products needs no kernel of its own: the first adds the residual, stores
the sum times the norm's weight, and each tile's sum of squares (MEASURES); the second divides by the
root of their mean at its end (SCALES), since that number is the same for a whole row of x.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from ..launch.dependent import options, prefetch, release, wait
from .reference import DeferredNorm
from .tuned import GATED, TUNED, Config, Table

BLOCK_M = 16
#: Columns of its rows of the weight that a program fetches before its turn comes.
PREFETCH = 256
#: Tiles of N that split-K may have: the smallest tile on a vocabulary of 262,144.
MAX_TILES = 16384

#: Configurations that the benchmark tries; the fastest go to tuned.py.
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
def _store_measured(
    out, gain_ptr, scaled_ptr, squares_ptr, tile, n, m, mask, size_n, BLOCK_M: tl.constexpr
):
    """The rounded tile out [BLOCK_N, BLOCK_M] times the norm's weight, and its sums of squares."""
    gain = tl.load(gain_ptr + n, mask=n < size_n, other=0.0).to(tl.float32)
    values = tl.where(mask, out.to(tl.float32), 0.0)
    scaled = (values * gain[:, None]).to(scaled_ptr.dtype.element_ty)
    tl.store(scaled_ptr + m[None, :] * size_n + n[:, None], scaled, mask=mask)
    tl.store(squares_ptr + tile * BLOCK_M + m, tl.sum(values * values, axis=0))


@triton.jit
def _finish(
    acc,
    bias_ptr,
    residual_ptr,
    out_ptr,
    gain_ptr,
    scaled_ptr,
    squares_ptr,
    tile,
    n,
    m,
    rows,
    size_n,
    residual_stride,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    GATES: tl.constexpr,
    MEASURES: tl.constexpr,
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
        if MEASURES:
            _store_measured(
                out, gain_ptr, scaled_ptr, squares_ptr, tile, n, m, mask, size_n, BLOCK_M
            )


@triton.jit(do_not_specialize=["rows"])
def _small_m_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    out_ptr,
    gain_ptr,
    scaled_ptr,
    squares_ptr,
    x_squares_ptr,
    part_ptr,
    counter_ptr,
    rows,
    size_n,
    size_k,
    x_parts,
    x_stride,
    weight_stride,
    residual_stride,
    eps,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    GATES: tl.constexpr,
    MEASURES: tl.constexpr,
    SCALES: tl.constexpr,
    X_PARTS: tl.constexpr,
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
    if SCALES:
        # Asked for ahead of the weights and used after them: their way here costs nothing then.
        part = tl.arange(0, X_PARTS)
        squares = tl.load(
            x_squares_ptr + part[:, None] * BLOCK_M + m[None, :],
            mask=(part < x_parts)[:, None],
            other=0.0,
        )
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for block in range(first, blocks * (split + 1) // SPLIT_K):
        weight = tl.load(weight_at + block * BLOCK_K)
        x = tl.load(x_at + block * BLOCK_K, mask=(m < rows)[None, :], other=0.0)
        acc = tl.dot(weight, x, acc, input_precision="ieee")
    if SCALES:
        # Each part of K is divided alone: the division distributes over their sum.
        acc *= tl.rsqrt(tl.sum(squares, axis=0) / size_k + eps)[None, :]
    if SPLIT_K == 1:
        _finish(
            acc,
            bias_ptr,
            residual_ptr,
            out_ptr,
            gain_ptr,
            scaled_ptr,
            squares_ptr,
            tile,
            n,
            m,
            rows,
            size_n,
            residual_stride,
            HAS_BIAS,
            HAS_RESIDUAL,
            GATES,
            MEASURES,
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
                gain_ptr,
                scaled_ptr,
                squares_ptr,
                tile,
                n,
                m,
                rows,
                size_n,
                residual_stride,
                HAS_BIAS,
                HAS_RESIDUAL,
                GATES,
                MEASURES,
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
    x: torch.Tensor | DeferredNorm,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    config: Config,
    gates: bool = False,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """See reference.linear, or with `gates` (and no residual) reference.gated_linear; at most 16
    rows, and `fits(config, *weight.shape)` must hold."""
    return _launch(x, weight, bias, residual, None, 0.0, config, gates, out)[0]


def linear_add_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor,
    gain: torch.Tensor,
    eps: float,
    config: Config,
) -> tuple[DeferredNorm, torch.Tensor]:
    """See reference.linear_add_norm; what holds for `linear` holds here."""
    total, norm = _launch(x, weight, bias, residual, gain, eps, config, gates=False)
    assert norm is not None  # there is a gain
    return norm, total


def _launch(
    x: torch.Tensor | DeferredNorm,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    gain: torch.Tensor | None,
    eps: float,
    config: Config,
    gates: bool,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, DeferredNorm | None]:
    before = x if isinstance(x, DeferredNorm) else None
    values = x.scaled if isinstance(x, DeferredNorm) else x
    size_n, size_k = weight.shape
    rows = values.reshape(-1, size_k)
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    other = rows if residual is None else residual.reshape(-1, size_n)
    block_n, block_k, split_k, warps, stages = config
    tiles = size_n // block_n
    width = size_n // 2 if gates else size_n
    if out is None:
        out = torch.empty((*values.shape[:-1], width), dtype=values.dtype, device=values.device)
    norm = None
    if gain is not None:
        squares = torch.empty((tiles, BLOCK_M), dtype=torch.float32, device=out.device)
        norm = DeferredNorm(torch.empty_like(out), squares, eps)
    parts = counters = out
    if split_k > 1:
        size = tiles * split_k * block_n * BLOCK_M
        parts = torch.empty(size, dtype=torch.float32, device=out.device)
        counters = _counters(out.device)
    x_parts = 1 if before is None else before.squares.shape[0]
    _small_m_kernel[(tiles, split_k)](
        rows,
        weight,
        out if bias is None else bias,
        other,
        out,
        out if gain is None else gain,
        out if norm is None else norm.scaled,
        out if norm is None else norm.squares,
        out if before is None else before.squares,
        parts,
        counters,
        rows.shape[0],
        size_n,
        size_k,
        x_parts,
        rows.stride(0),
        weight.stride(0),
        other.stride(0),
        eps if before is None else before.eps,
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
        GATES=gates,
        MEASURES=norm is not None,
        SCALES=before is not None,
        X_PARTS=triton.next_power_of_2(x_parts),
        BLOCK_M=BLOCK_M,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        SPLIT_K=split_k,
        PREFETCH=PREFETCH,
        num_warps=warps,
        num_stages=stages,
        **options(values),
    )
    return out, norm
