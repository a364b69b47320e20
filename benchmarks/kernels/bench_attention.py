"""Cases of paged attention; with `tune`, also other tiles than the default."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import torch
from harness import Case
from torch.nn import functional as F

from hpcserve.kernels.attention import paged_decode_triton, paged_prefill_triton, reference, shapes

DECODE_TILES = [
    (32, 4, 4), (64, 4, 2), (64, 4, 3), (64, 4, 4), (64, 8, 3), (128, 4, 3), (128, 8, 3),
]  # fmt: skip
PREFILL_TILES = [
    (64, 64, 4, 3), (128, 64, 4, 3), (128, 64, 8, 3), (128, 64, 8, 4), (128, 128, 8, 2),
    (128, 128, 8, 3), (128, 32, 8, 4),
]  # fmt: skip


def _inputs(case: shapes.Case, device: str, dtype: torch.dtype, seed: int) -> tuple[Any, ...]:
    g = torch.Generator(device).manual_seed(seed)
    rows = len(case.seq_lens)
    pages = -(-max(case.seq_lens) // case.page_size)
    pool = (rows * pages, case.page_size, case.kv_heads, case.head_dim)
    k_cache = torch.randn(pool, generator=g, device=device, dtype=dtype)
    v_cache = torch.randn(pool, generator=g, device=device, dtype=dtype)
    table = torch.randperm(rows * pages, generator=g, device=device).int().view(rows, pages)
    bounds = torch.tensor((0, *case.query_lens), device=device).cumsum(0).int()
    q = torch.randn(
        sum(case.query_lens), case.heads, case.head_dim, generator=g, device=device, dtype=dtype
    )
    return q, k_cache, v_cache, table, bounds, torch.tensor(case.seq_lens, device=device).int()


def _name(case: shapes.Case) -> str:
    longest, queries = max(case.seq_lens), max(case.query_lens)
    shape = f"{len(case.seq_lens)} x {longest}" + (f" q {queries}" if queries > 1 else "")
    return f"{shape} h{case.heads}/{case.kv_heads} d{case.head_dim} p{case.page_size}"


def _bytes(case: shapes.Case, itemsize: int) -> float:
    kv = 2 * sum(case.seq_lens) * case.kv_heads * case.head_dim
    return (kv + 2 * sum(case.query_lens) * case.heads * case.head_dim) * itemsize


def _flops(case: shapes.Case) -> float:
    pairs = sum(
        n * (length - n) + n * (n + 1) / 2
        for length, n in zip(case.seq_lens, case.query_lens, strict=True)
    )
    return 4 * pairs * case.heads * case.head_dim


def _dense(case: shapes.Case) -> Any:
    """torch's attention over the same pool read as dense rows: no page table to follow."""

    def run(q: Any, k: Any, v: Any, *rest: Any) -> Any:
        rows = len(case.seq_lens)
        q = q.view(rows, -1, case.heads, case.head_dim).transpose(1, 2)
        k, v = (x.view(rows, -1, case.kv_heads, case.head_dim).transpose(1, 2) for x in (k, v))
        causal = q.shape[2] > 1
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)

    return run


def _flashinfer_decode(rivals: Any, case: shapes.Case, dtype: torch.dtype) -> Any:
    """Planned once, by the first call, which is not timed: its best case."""

    @cache
    def planned() -> Any:
        workspace = torch.zeros(128 << 20, dtype=torch.uint8, device="cuda")
        wrapper = rivals.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=True)
        pages = torch.tensor([-(-n // case.page_size) for n in case.seq_lens])
        bounds = torch.cat((torch.zeros(1, dtype=torch.long), pages.cumsum(0))).int()
        order = torch.randperm(int(bounds[-1]), device="cuda").int()
        last = torch.tensor([(n - 1) % case.page_size + 1 for n in case.seq_lens]).int()
        heads = (case.heads, case.kv_heads, case.head_dim, case.page_size)
        wrapper.plan(bounds, order, last, *heads, q_data_type=dtype, kv_data_type=dtype)
        return wrapper

    return lambda q, k, v, *rest: planned().run(q, (k, v))


def _decode(case: shapes.Case, fn: Any) -> Any:
    scale = case.head_dim**-0.5
    return lambda q, k, v, table, bounds, lens: fn(q, k, v, table, lens, scale)


def _prefill(case: shapes.Case, fn: Any) -> Any:
    scale, longest = case.head_dim**-0.5, max(case.query_lens)
    return lambda q, k, v, table, bounds, lens: fn(q, k, v, table, bounds, lens, scale, longest)


def _tiles(case: shapes.Case, tiles: list[Any], wrap: Any, fn: Any) -> dict[str, Any]:
    return {str(tile): wrap(case, partial(fn, tile=tile)) for tile in tiles}


def cases(
    device: str, dtype: torch.dtype, dry_run: bool, rivals: Any, tune: bool = False
) -> Iterator[Case]:
    # The interpreter has no bfloat16 matrix product.
    dtype = torch.float16 if dry_run else dtype
    for decode, shape in [
        *((True, s) for s in (shapes.DECODE_SMALL if dry_run else shapes.DECODE_FULL)),
        *((False, s) for s in (shapes.PREFILL_SMALL if dry_run else shapes.PREFILL_FULL)),
    ]:
        wrap = _decode if decode else _prefill
        kernel = paged_decode_triton.paged_decode if decode else paged_prefill_triton.paged_prefill
        others: dict[str, Any] = {}
        even = len(set(shape.seq_lens)) == len(set(shape.query_lens)) == 1
        square = decode or shape.seq_lens == shape.query_lens
        if not dry_run and even and square:
            others["sdpa dense"] = _dense(shape)
        if not dry_run and decode and rivals:
            others["flashinfer"] = _flashinfer_decode(rivals, shape, dtype)
        if tune and shape.head_dim == 128:
            others |= _tiles(shape, DECODE_TILES if decode else PREFILL_TILES, wrap, kernel)
        yield Case(
            "decode" if decode else "prefill",
            _name(shape),
            partial(_inputs, shape, device, dtype),
            wrap(shape, kernel),
            wrap(shape, reference.paged_decode if decode else reference.paged_prefill),
            others,
            bytes=_bytes(shape, dtype.itemsize),
            flops=_flops(shape),
        )
