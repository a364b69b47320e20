"""Shapes where the small-M kernel was measured to beat cuBLAS, by device name.

(rows rounded up to a power of two, N, K) -> (BLOCK_N, BLOCK_K, SPLIT_K, warps, stages). Made by
`benchmarks/kernels/bench_gemm.py`, which prints this table; a shape that is not in it goes to
cuBLAS. A device that is not in it has not been measured.
"""

from __future__ import annotations

Config = tuple[int, int, int, int, int]

TUNED: dict[str, dict[tuple[int, int, int], Config]] = {}
