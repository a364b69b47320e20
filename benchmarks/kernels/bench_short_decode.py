"""Decode attention of few short rows: which lengths the own kernel should take of flashinfer's.

`python benchmarks/kernels/bench_short_decode.py`: microseconds a call in CUDA graphs, the own kernel
with parts of at least 64, 128 and 256 tokens against flashinfer, with the heads of Llama-3.1-8B on
one GPU and of 70B on 4 and 8. The KV is cold, as it is behind a layer's weights, and the table as
wide as an engine's. --dry-run goes through the same code without a GPU, in Triton's interpreter.
What it says belongs into hpcserve/attention/flashinfer.py (_SHORT_ROW, _SHORT_ROWS) and
hpcserve/ops/paged_attention.py (FEW_SPLIT).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).parent)]
DRY_RUN = "--dry-run" in sys.argv
if DRY_RUN:
    os.environ["TRITON_INTERPRET"] = "1"

import torch  # noqa: E402
from harness import difference, flashinfer_decode, measure, require_gpu  # noqa: E402

from hpcserve.kernels.attention import reference  # noqa: E402
from hpcserve.kernels.attention.paged_decode_triton import paged_decode  # noqa: E402

DIM, PAGE = 128, 16
#: q heads and kv heads.
HEADS = [(32, 8), (16, 2), (8, 1)]
ROWS, TOKENS, SPLITS = [1, 2, 4], [512, 1024, 2048, 4096], [64, 128, 256]
#: Values of the pools that one round reads, 400 MB in bf16: several times what L2 holds.
ROUND_VALUES, MAX_POOLS = 200_000_000, 400
TABLE_PAGES = 2048
DEVICE, DTYPE = "cuda", torch.bfloat16
if DRY_RUN:
    HEADS, ROWS, TOKENS, SPLITS = [(4, 2), (8, 1)], [2], [70], [64, 256]
    DIM, ROUND_VALUES, TABLE_PAGES, DEVICE, DTYPE = 32, 20_000, 8, "cpu", torch.float32


def pools_of(store: torch.Tensor, pages: int, kv_heads: int) -> list[tuple[Any, Any]]:
    """(k_cache, v_cache) of as many layers as a round has, one behind the other in `store`."""
    shape = (2, pages, PAGE, kv_heads, DIM)
    size = 2 * pages * PAGE * kv_heads * DIM
    count = max(2, min(MAX_POOLS, len(store) // size))
    pools = [store[i * size : (i + 1) * size].view(shape) for i in range(count)]
    return [(pool[0], pool[1]) for pool in pools]


def bench(store: torch.Tensor, heads: int, kv_heads: int, rows: int, tokens: int) -> list[float]:
    """Microseconds with each of SPLITS, then flashinfer's."""
    pages = -(-tokens // PAGE)
    pools = pools_of(store, rows * pages, kv_heads)
    table = torch.zeros(rows, TABLE_PAGES, dtype=torch.int32, device=DEVICE)
    used = torch.randperm(rows * pages, device=DEVICE).int().view(rows, pages)
    table[:, :pages] = used
    lens = torch.full((rows,), tokens, dtype=torch.int32, device=DEVICE)
    sets = [(torch.randn(rows, heads, DIM, device=DEVICE).to(DTYPE), *pool) for pool in pools]
    times, want = [], reference.paged_decode(*sets[0], table, lens, DIM**-0.5)
    for split in SPLITS:

        def own(q: Any, k: Any, v: Any, split: int = split) -> torch.Tensor:
            return paged_decode(q, k, v, table, lens, DIM**-0.5, min_split=split)

        if not difference(own(*sets[0]), want) < 1e-2:
            raise SystemExit(f"error: wrong result: {heads}/{kv_heads}, {rows} x {tokens}, {split}")
        times.append(measure(own, sets))
    if DRY_RUN:
        return [*times, float("nan")]
    theirs = flashinfer_decode(used, lens, heads, pools[0][0])
    return [*times, measure(lambda q, k, v: theirs(q, (k, v)), sets)]


def main() -> int:
    if not DRY_RUN:
        require_gpu()
    size = max(ROUND_VALUES, 4 * max(ROWS) * (max(TOKENS) + PAGE) * max(k for _, k in HEADS) * DIM)
    store = torch.randn(size, device=DEVICE, dtype=DTYPE)
    columns = "".join(f"{f'own {split}':>9s}" for split in SPLITS)
    print(f"heads   rows tokens tokens x kv {columns} flashinfer  best own of flashinfer's")
    for heads, kv_heads in HEADS:
        for rows in ROWS:
            for tokens in TOKENS:
                *own, theirs = bench(store, heads, kv_heads, rows, tokens)
                print(
                    f"{f'{heads}/{kv_heads}':7s} {rows:4d} {tokens:6d} {tokens * kv_heads:11d} "
                    f"{''.join(f'{us:9.2f}' for us in own)} {theirs:10.2f} {min(own) / theirs:10.2f}",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
