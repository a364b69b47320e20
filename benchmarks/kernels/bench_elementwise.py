"""Cases of norm, activation, embedding, rope, KV write and metadata."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from harness import Case
from torch.nn import functional as F

from hpcserve.kernels.activation import reference as activation_reference
from hpcserve.kernels.activation import shapes as activation_shapes
from hpcserve.kernels.activation import silu_and_mul_triton
from hpcserve.kernels.embedding import embed_triton
from hpcserve.kernels.embedding import reference as embedding_reference
from hpcserve.kernels.embedding import shapes as embedding_shapes
from hpcserve.kernels.kv_store import reference as kv_reference
from hpcserve.kernels.kv_store import shapes as kv_shapes
from hpcserve.kernels.kv_store import write_kv_triton
from hpcserve.kernels.metadata import expand_triton
from hpcserve.kernels.metadata import reference as metadata_reference
from hpcserve.kernels.metadata import shapes as metadata_shapes
from hpcserve.kernels.norm import reference as norm_reference
from hpcserve.kernels.norm import rms_norm_triton
from hpcserve.kernels.norm import shapes as norm_shapes
from hpcserve.kernels.rope import reference as rope_reference
from hpcserve.kernels.rope import rope_kv_write_triton
from hpcserve.kernels.rope import shapes as rope_shapes

EPS = 1e-6


def _generator(seed: int, device: str) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def _norm(device: str, dtype: torch.dtype, dry_run: bool, rivals: Any) -> Iterator[Case]:
    for rows, hidden in norm_shapes.SMALL if dry_run else norm_shapes.FULL:

        def make(seed: int, rows: int = rows, hidden: int = hidden) -> tuple[Any, ...]:
            g = _generator(seed, device)
            x, residual = torch.randn(2, rows, hidden, generator=g, device=device).to(dtype)
            return x, residual, torch.rand(hidden, generator=g, device=device).to(dtype)

        others = {"torch": lambda x, r, w: F.rms_norm(x, x.shape[-1:], w, EPS)}
        if rivals:
            others["flashinfer"] = lambda x, r, w: rivals.norm.rmsnorm(x, w, EPS)
        yield Case(
            "rms_norm",
            f"{rows} x {hidden}",
            make,
            lambda x, r, w: rms_norm_triton.rms_norm(x, w, EPS),
            lambda x, r, w: norm_reference.rms_norm(x, w, EPS),
            others,
            bytes=2 * rows * hidden * 2,
        )
        yield Case(
            "add_rms_norm",
            f"{rows} x {hidden}",
            make,
            lambda x, r, w: rms_norm_triton.add_rms_norm(x, r, w, EPS),
            lambda x, r, w: norm_reference.add_rms_norm(x, r, w, EPS),
            {"torch": lambda x, r, w: norm_reference.add_rms_norm(x, r, w, EPS)},
            bytes=4 * rows * hidden * 2,
        )


def _activation(device: str, dtype: torch.dtype, dry_run: bool, rivals: Any) -> Iterator[Case]:
    for rows, size in activation_shapes.SMALL if dry_run else activation_shapes.FULL:

        def make(seed: int, rows: int = rows, size: int = size) -> tuple[Any, ...]:
            g = _generator(seed, device)
            return (torch.randn(rows, 2 * size, generator=g, device=device).to(dtype),)

        others = {"torch": activation_reference.silu_and_mul}
        if rivals:
            others["flashinfer"] = rivals.activation.silu_and_mul
        yield Case(
            "silu_and_mul",
            f"{rows} x {size}",
            make,
            silu_and_mul_triton.silu_and_mul,
            activation_reference.silu_and_mul,
            others,
            bytes=3 * rows * size * 2,
        )


def _embedding(device: str, dtype: torch.dtype, dry_run: bool) -> Iterator[Case]:
    for tokens, vocab, hidden in embedding_shapes.SMALL if dry_run else embedding_shapes.FULL:
        table = torch.randn(vocab, hidden, device=device).to(dtype)

        def make(seed: int, tokens: int = tokens, table: torch.Tensor = table) -> tuple[Any, ...]:
            g = _generator(seed, device)
            ids = torch.randint(0, len(table), (tokens,), generator=g, device=device)
            return ids.int(), table

        yield Case(
            "embed",
            f"{tokens} of {vocab} x {hidden}",
            make,
            embed_triton.embed,
            embedding_reference.embed,
            {"torch": embedding_reference.embed},
            bytes=2 * tokens * hidden * 2,
        )


def _rope(device: str, dtype: torch.dtype, dry_run: bool) -> Iterator[Case]:
    for tokens, heads, kv_heads, dim, page, norm in (
        rope_shapes.SMALL if dry_run else rope_shapes.FULL
    ):
        pages = tokens * 2 // page + 2
        cos_sin = rope_reference.cos_sin_cache(
            (10000.0 ** -(torch.arange(0, dim, 2) / dim)).to(device), 4096
        )

        def make(
            seed: int,
            shape: tuple[int, ...] = (tokens, heads, kv_heads, dim, page, pages),
            norm: bool = norm,
            cos_sin: torch.Tensor = cos_sin,
        ) -> tuple[Any, ...]:
            g = _generator(seed, device)
            tokens, heads, kv_heads, dim, page, pages = shape
            qkv = torch.randn(tokens, heads + 2 * kv_heads, dim, generator=g, device=device)
            q, k, v = qkv.to(dtype).split((heads, kv_heads, kv_heads), dim=1)
            caches = torch.zeros(2, pages, page, kv_heads, dim, device=device).to(dtype)
            slots = torch.randperm(pages * page, generator=g, device=device)[:tokens]
            positions = torch.randint(0, 4096, (tokens,), generator=g, device=device)
            weights = torch.rand(2, dim, generator=g, device=device).to(dtype)
            norms = tuple(weights) if norm else (None, None)
            return (q, k, v, positions, cos_sin, *caches, slots, *norms)

        def run(fn: Any) -> Any:
            return lambda *args: (fn(*args), args[5], args[6])

        yield Case(
            "rope+kv",
            f"{tokens} x ({heads}+2*{kv_heads}) x {dim}" + (" qk-norm" if norm else ""),
            make,
            run(rope_kv_write_triton.rope_kv_write),
            run(rope_reference.rope_kv_write),
            bytes=2 * tokens * (heads + 2 * kv_heads) * dim * 2,
        )


def _kv_store(device: str, dtype: torch.dtype, dry_run: bool) -> Iterator[Case]:
    for tokens, heads, dim, page, pages in kv_shapes.SMALL if dry_run else kv_shapes.FULL:

        def make(
            seed: int, shape: tuple[int, ...] = (tokens, heads, dim, page, pages)
        ) -> tuple[Any, ...]:
            g = _generator(seed, device)
            tokens, heads, dim, page, pages = shape
            k, v = torch.randn(2, tokens, heads, dim, generator=g, device=device).to(dtype)
            caches = torch.zeros(2, pages, page, heads, dim, device=device).to(dtype)
            slots = torch.randperm(pages * page, generator=g, device=device)[:tokens]
            return (k, v, *caches, slots)

        def run(fn: Any) -> Any:
            def call(*args: Any) -> Any:
                fn(*args)
                return args[2], args[3]

            return call

        yield Case(
            "write_kv",
            f"{tokens} x {heads} x {dim}, page {page}",
            make,
            run(write_kv_triton.write_kv),
            run(kv_reference.write_kv),
            bytes=4 * tokens * heads * dim * 2,
        )


def _metadata(device: str, dry_run: bool) -> Iterator[Case]:
    for lengths, page in metadata_shapes.SMALL if dry_run else metadata_shapes.FULL:
        counts = [abs(length) for length in lengths]

        def make(
            seed: int, lengths: list[int] = lengths, counts: list[int] = counts, page: int = page
        ) -> tuple[Any, ...]:
            g = _generator(seed, device)
            rows = len(lengths)
            slots = torch.randperm(rows, generator=g, device=device).int()
            slots[torch.tensor([n < 0 for n in lengths], device=device)] = -1
            computed = torch.randint(0, 1000, (rows,), generator=g, device=device).int()
            table = torch.randint(0, 9999, (rows, 8192 // page), generator=g, device=device).int()
            tokens = torch.randint(0, 9999, (rows, 8193), generator=g, device=device).int()
            scheduled = torch.tensor(counts, device=device).int()
            return slots, computed, scheduled, table, tokens, page, sum(counts)

        name = f"{len(lengths)} rows, {sum(counts)} tokens"
        yield Case(
            "expand", name, make, expand_triton.expand, metadata_reference.expand, tolerance=0.0
        )
        if max(counts) == 1:

            def decode(fn: Any) -> Any:
                return lambda s, c, n, t, b, size, total: fn(s, c, t, b, size)

            yield Case(
                "expand_decode",
                name,
                make,
                decode(expand_triton.expand_decode),
                decode(metadata_reference.expand_decode),
                tolerance=0.0,
            )


def cases(device: str, dtype: torch.dtype, dry_run: bool, rivals: Any) -> Iterator[Case]:
    yield from _norm(device, dtype, dry_run, rivals)
    yield from _activation(device, dtype, dry_run, rivals)
    yield from _embedding(device, dtype, dry_run)
    yield from _rope(device, dtype, dry_run)
    yield from _kv_store(device, dtype, dry_run)
    yield from _metadata(device, dry_run)
