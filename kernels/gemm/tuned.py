"""Shapes where the small-M kernel was measured to beat cuBLAS, by device name.

(rows rounded up to a power of two, N, K) -> (BLOCK_N, BLOCK_K, SPLIT_K, warps, stages). Made by
`benchmarks/kernels/bench_gemm.py`, which prints this table, and for the layers of Llama-3.1-8B by
`tune_decode_layer.py`, where the kernel runs between its neighbours; a shape that is not in it
goes to cuBLAS. A device that is not in it has not been measured.

`tuned.json` beside this file, where there is one, adds to it: `tune_rank_layer.py` writes it, for the
slices of layers that ranks of a tensor-parallel group hold.
"""

from __future__ import annotations

import json
from pathlib import Path

Config = tuple[int, int, int, int, int]
Table = dict[tuple[int, int, int], Config]

TUNED: dict[str, Table] = {
    "NVIDIA H200": {
        (1, 128256, 4096): (64, 128, 1, 4, 5),
        (1, 28672, 4096): (128, 128, 1, 8, 4),
        (2, 128256, 4096): (64, 128, 1, 4, 5),
        (2, 28672, 4096): (64, 128, 1, 4, 5),
        (4, 128256, 4096): (64, 128, 1, 4, 5),
        (4, 28672, 4096): (64, 256, 1, 4, 4),
        (8, 128256, 4096): (64, 128, 1, 4, 5),
        (8, 28672, 4096): (128, 128, 1, 8, 4),
        (16, 128256, 4096): (64, 128, 1, 4, 5),
        (16, 28672, 4096): (128, 128, 1, 8, 4),
        (1, 6144, 4096): (64, 128, 1, 4, 5),
        (2, 6144, 4096): (64, 256, 1, 4, 4),
        (4, 6144, 4096): (64, 256, 1, 4, 4),
        (8, 6144, 4096): (64, 256, 1, 4, 4),
        (16, 6144, 4096): (64, 256, 1, 4, 4),
        (1, 4096, 4096): (64, 256, 1, 4, 4),
        (2, 4096, 4096): (64, 256, 1, 4, 4),
        (4, 4096, 4096): (64, 128, 4, 4, 5),
        (8, 4096, 4096): (64, 128, 2, 4, 5),
        (16, 4096, 4096): (64, 256, 1, 4, 4),
        (4, 4096, 14336): (64, 256, 2, 4, 4),
        (8, 4096, 14336): (64, 256, 2, 4, 4),
        (16, 4096, 14336): (64, 256, 2, 4, 4),
        (1, 4096, 1024): (64, 128, 1, 4, 5),
        (2, 4096, 1024): (64, 128, 1, 4, 5),
        (4, 4096, 1024): (64, 128, 1, 4, 5),
        (8, 4096, 1024): (64, 128, 1, 4, 5),
        (16, 4096, 1024): (64, 128, 1, 4, 5),
        (1, 1024, 2048): (64, 128, 4, 4, 5),
        (2, 1024, 2048): (64, 128, 4, 4, 5),
        (4, 1024, 2048): (64, 128, 4, 4, 5),
        (8, 1024, 2048): (64, 128, 4, 4, 5),
        (16, 1024, 2048): (64, 128, 4, 4, 5),
        (1, 6144, 1024): (64, 128, 1, 4, 5),
        (2, 6144, 1024): (64, 128, 1, 4, 5),
        (4, 6144, 1024): (64, 128, 1, 4, 5),
        (8, 6144, 1024): (64, 128, 1, 4, 5),
        (16, 6144, 1024): (64, 128, 1, 4, 5),
        (1, 1024, 3072): (64, 128, 4, 4, 5),
        (2, 1024, 3072): (64, 128, 8, 4, 5),
        (4, 1024, 3072): (64, 128, 4, 4, 5),
        (8, 1024, 3072): (64, 128, 4, 4, 5),
        (16, 1024, 3072): (64, 128, 4, 4, 5),
        (8, 151936, 1024): (64, 128, 1, 4, 5),
        (1, 1280, 8192): (64, 256, 4, 4, 4),
        (2, 1280, 8192): (64, 256, 4, 4, 4),
        (4, 1280, 8192): (64, 256, 4, 4, 4),
        (8, 1280, 8192): (64, 256, 4, 4, 4),
        (16, 1280, 8192): (64, 256, 4, 4, 4),
        (1, 8192, 1024): (64, 128, 1, 4, 5),
        (2, 8192, 1024): (64, 128, 1, 4, 5),
        (4, 8192, 1024): (64, 128, 1, 4, 5),
        (8, 8192, 1024): (64, 128, 1, 4, 5),
        (16, 8192, 1024): (64, 128, 1, 4, 5),
        (1, 7168, 8192): (64, 256, 1, 4, 4),
        (2, 7168, 8192): (64, 256, 1, 4, 4),
        (4, 7168, 8192): (64, 256, 1, 4, 4),
        (8, 7168, 8192): (64, 256, 1, 4, 4),
        (16, 7168, 8192): (64, 128, 1, 4, 5),
        (1, 8192, 3584): (64, 128, 1, 4, 5),
        (2, 8192, 3584): (64, 128, 1, 4, 5),
        (4, 8192, 3584): (64, 128, 1, 4, 5),
        (8, 8192, 3584): (64, 128, 1, 4, 5),
        (16, 8192, 3584): (64, 128, 1, 4, 5),
    },
}

#: The same for linear, silu(gate) * up in one; N counts gate and up.
GATED: dict[str, Table] = {
    "NVIDIA H200": {
        (1, 28672, 4096): (128, 128, 1, 8, 4),
        (2, 28672, 4096): (64, 128, 1, 4, 5),
        (4, 28672, 4096): (64, 256, 1, 4, 4),
        (8, 28672, 4096): (128, 128, 1, 8, 4),
        (16, 28672, 4096): (128, 128, 1, 8, 4),
    },
}


def add_from(path: Path) -> None:
    """Add what a file says: {device: {"linear" or "gated": [[[rows, N, K], configuration], ...]}}."""
    for device, kinds in json.loads(path.read_text(encoding="utf-8")).items():
        for kind, tables in (("linear", TUNED), ("gated", GATED)):
            table = tables.setdefault(device, {})
            for (rows, size_n, size_k), config in kinds[kind]:
                block_n, block_k, split_k, warps, stages = config
                table[rows, size_n, size_k] = (block_n, block_k, split_k, warps, stages)


_FILE = Path(__file__).with_name("tuned.json")
if _FILE.exists():
    add_from(_FILE)
