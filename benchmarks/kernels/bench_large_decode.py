"""Decode attention of large batches: flashinfer's ways to split against the own kernel's tiles.

`python benchmarks/kernels/bench_large_decode.py [--heads 32/8 16/2 8/1] [--shapes 64x1024]`; needs a
GPU and flashinfer. One line a shape, microseconds a call (CUDA graph replays), heads of 128 in bf16,
page size 16. --heads: q and kv heads; 16/2 and 8/1 are what ranks of 4 and 8 have of a 70B model.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).parent)]

import torch  # noqa: E402
from harness import (  # noqa: E402
    BANDWIDTH,
    FAILURES,
    difference,
    flashinfer_decode,
    measure,
    require_gpu,
)

from hpcserve.kernels.attention.paged_decode_triton import paged_decode  # noqa: E402

DIM, PAGE = 128, 16
SHAPES = [(1, 4096), (1, 32768), (4, 512), (4, 8192), (8, 1024), (8, 32768), (16, 1024), (16, 8192),
          (32, 512), (32, 1024), (32, 4096), (64, 1024), (64, 4096), (128, 512), (128, 2048),
          (256, 320), (256, 2048), (1024, 320)]  # fmt: skip
TILES = [((64, 4, 3), 64), ((64, 4, 2), 64), ((64, 4, 2), 128), ((64, 4, 2), 256), ((64, 4, 2), 512),
         ((64, 4, 2), 1024), ((128, 4, 2), 1024), ((64, 2, 2), 1024), ((32, 2, 3), 1024)]  # fmt: skip


def bench(heads: int, kv_heads: int, rows: int, context: int) -> None:
    pages = -(-context // PAGE)
    pool = torch.randn(2, rows * pages, PAGE, kv_heads, DIM, device="cuda", dtype=torch.bfloat16)
    table = torch.randperm(rows * pages, device="cuda").int().view(rows, pages)
    lens = torch.full((rows,), context, dtype=torch.int32, device="cuda")
    q = torch.randn(rows, heads, DIM, device="cuda", dtype=torch.bfloat16)
    theirs = flashinfer_decode(table, lens, heads, pool[0])
    want = theirs(q, (pool[0], pool[1]))
    runs: dict[str, Any] = {"flashinfer": lambda q: theirs(q, (pool[0], pool[1]))}
    for tile, split in TILES:
        runs[f"{tile} {split}"] = lambda q, t=tile, s=split: paged_decode(
            q, pool[0], pool[1], table, lens, DIM**-0.5, None, None, t, s
        )
    floor = 2 * rows * context * kv_heads * DIM * 2 / BANDWIDTH * 1e6
    line = f"{heads}/{kv_heads} {rows} x {context}: floor {floor:.0f}"
    for name, run in runs.items():
        try:
            wrong = "" if difference(run(q), want) < 1e-2 else " WRONG"
            line += f" | {name}: {measure(run, [(q,), (q.clone(),)]):.0f}{wrong}"
        except FAILURES as failure:
            line += f" | {name}: {type(failure).__name__} {str(failure)[:60]}"
    print(line, flush=True)


def pair(text: str) -> tuple[int, int]:
    first, second = text.replace("/", "x").split("x")
    return int(first), int(second)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", type=pair, nargs="+", default=[(32, 8)])
    parser.add_argument("--shapes", type=pair, nargs="+", default=SHAPES, help="rows x tokens")
    options = parser.parse_args()
    require_gpu("this program only compares timings")
    for heads in options.heads:
        for shape in options.shapes:
            bench(*heads, *shape)


if __name__ == "__main__":
    main()
