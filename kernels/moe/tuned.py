"""Tiles of the grouped matrix product, by rows that an expert has on average.

(rows up to, (BLOCK_M, BLOCK_N, BLOCK_K, warps, stages)): few rows are bound by reading the
weights, many by the tensor cores. benchmarks/kernels/bench_moe.py tries CANDIDATES.
"""

from __future__ import annotations

Config = tuple[int, int, int, int, int]

TILES: tuple[tuple[int, Config], ...] = (
    (16, (16, 128, 128, 4, 4)),
    (48, (32, 128, 128, 4, 3)),
    (128, (64, 128, 64, 4, 4)),
    (1 << 30, (128, 128, 64, 8, 4)),
)

CANDIDATES: tuple[Config, ...] = (
    (16, 64, 128, 4, 4),
    (16, 64, 256, 4, 4),
    (16, 128, 128, 4, 4),
    (16, 128, 64, 4, 5),
    (16, 256, 64, 8, 4),
    (32, 64, 128, 4, 4),
    (32, 128, 128, 4, 3),
    (64, 128, 64, 4, 4),
    (64, 256, 64, 8, 3),
    (128, 128, 64, 8, 4),
    (128, 256, 64, 8, 3),
)


def tile(num_pairs: int, num_experts: int) -> Config:
    """The tile for so many (token, expert) pairs over so many experts."""
    mean = num_pairs / num_experts
    return next(config for most, config in TILES if mean <= most)
