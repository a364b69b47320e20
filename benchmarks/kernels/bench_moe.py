"""Tune and time the experts of Qwen3-30B-A3B and Mixtral-8x7B, and of the slices ranks hold.

    python benchmarks/kernels/bench_moe.py --out moe.json --write      (estimated: under 4 minutes)

For every shape and number of tokens: each candidate tile of the two grouped products, checked and
timed with routing that spreads evenly at random; the best pair of tiles; the whole of the experts
beside the time that reading the distinct experts hit takes. --write puts the tiles where the
engine reads them (kernels/moe/tuned.json), --table FILE elsewhere. --dry-run goes through the same
code without a GPU, in Triton's interpreter, on tiny shapes. The last line printed is the JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
if "--dry-run" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"

import torch  # noqa: E402
from harness import BANDWIDTH, FLOPS, difference, measure, require_gpu  # noqa: E402

from hpcserve.kernels.activation.silu_and_mul_triton import silu_and_mul  # noqa: E402
from hpcserve.kernels.moe import align_triton, grouped_gemm_triton, reference, tuned  # noqa: E402

TABLE_FILE = ROOT / "kernels" / "moe" / "tuned.json"
TOKENS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]
#: Sets of routing that the calls of one graph walk through.
ROUTINGS = 4
TOLERANCE = 2e-2


@dataclass(frozen=True)
class Shape:
    """What one rank holds: `held` of `experts`, of each a slice of `size`."""

    name: str
    experts: int
    held: int
    hidden: int
    size: int
    k: int

    @property
    def key(self) -> tuple[int, int, int]:
        return self.held, self.hidden, self.size


def _slices(
    name: str, experts: int, hidden: int, size: int, k: int, tp: Any, ep: Any
) -> list[Shape]:
    whole = [Shape(name, experts, experts, hidden, size, k)]
    sliced = [Shape(f"{name} tp {n}", experts, experts, hidden, size // n, k) for n in tp]
    parted = [Shape(f"{name} ep {n}", experts, experts // n, hidden, size, k) for n in ep]
    return whole + sliced + parted


SHAPES = [
    *_slices("qwen3-30b-a3b", 128, 2048, 768, 8, (2, 4), (2, 4, 8)),
    *_slices("mixtral-8x7b", 8, 4096, 14336, 2, (2, 4, 8), (2, 4, 8)),
]
TINY = [Shape("tiny", 4, 4, 32, 16, 2), Shape("tiny ep 2", 4, 2, 32, 16, 2)]
TINY_CANDIDATES = ((16, 16, 16, 4, 2), (16, 32, 16, 4, 2))


class Inputs:
    """Weights of a shape, and for a number of tokens the rows and several routings."""

    def __init__(self, shape: Shape, device: str, dtype: torch.dtype) -> None:
        self.shape, self.device, self.dtype = shape, device, dtype
        self.generator = torch.Generator(device).manual_seed(0)
        self.gate_up = self._normal(shape.held, 2 * shape.size, shape.hidden) / shape.hidden**0.5
        self.down = self._normal(shape.held, shape.hidden, shape.size) / shape.size**0.5

    def _normal(self, *size: int) -> torch.Tensor:
        made = torch.empty(size, dtype=self.dtype, device=self.device)
        return made.normal_(generator=self.generator)

    def set_tokens(self, tokens: int) -> None:
        self.tokens = tokens
        self.x = self._normal(tokens, self.shape.hidden)
        self.routings = []
        for _ in range(ROUTINGS):
            logits = self._normal(tokens, self.shape.experts).float()
            self.routings.append(reference.route(logits, self.shape.k, True))

    @property
    def num_pairs(self) -> int:
        return self.tokens * self.shape.k

    def distinct(self) -> float:
        """Of the experts held here, how many a step's tokens choose, the mean of the routings."""
        hit = [ids.unique() for _, ids in self.routings]
        return sum(int((ids < self.shape.held).sum()) for ids in hit) / len(hit)

    def sorted_pairs(self, block_m: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [align_triton.align(ids, block_m, self.shape.held, 0) for _, ids in self.routings]


def candidates(inputs: Inputs, configs: Any) -> dict[int, list[Any]]:
    """By BLOCK_M: those whose blocks are not mostly padding, nor far too many."""
    mean = inputs.num_pairs / inputs.shape.experts
    found: dict[int, list[Any]] = {}
    for config in configs:
        if config[0] == 16 or config[0] <= 4 * mean:
            found.setdefault(config[0], []).append(config)
    largest = max(found)
    # Few rows a block cost a read of the weights each.
    return {m: tried for m, tried in found.items() if 16 * m >= largest or m >= mean / 8}


def time_product(inputs: Inputs, config: Any, *, is_down: bool) -> float:
    """Microseconds of one of the two products."""
    shape = inputs.shape
    weight = inputs.down if is_down else inputs.gate_up
    rows = inputs._normal(inputs.num_pairs, shape.size) if is_down else inputs.x
    per_row = 1 if is_down else shape.k
    sets = [(rows, pairs, blocks) for pairs, blocks in inputs.sorted_pairs(config[0])]
    return measure(
        lambda x, pairs, blocks: grouped_gemm_triton.grouped_gemm(
            x, weight, pairs, blocks, inputs.num_pairs, per_row, config
        ),
        sets,
    )


def best_tiles(inputs: Inputs, configs: Any, failures: list[str]) -> tuple[Any, float]:
    """(the fastest pair of tiles with one BLOCK_M, microseconds of the two products)."""
    from harness import FAILURES

    best: tuple[Any, float] = (None, float("inf"))
    for tried in candidates(inputs, configs).values():
        fastest = []
        for is_down in (False, True):
            timed = []
            for config in tried:
                try:
                    timed.append((time_product(inputs, config, is_down=is_down), config))
                except FAILURES as failure:
                    failures.append(f"{inputs.shape.name} {config}: {str(failure)[:80]}")
            if timed:
                fastest.append(min(timed))
        if len(fastest) == 2 and (us := fastest[0][0] + fastest[1][0]) < best[1]:
            best = (tuned.Tiles(fastest[0][1], fastest[1][1]), us)
    return best


def whole_us(inputs: Inputs, tiles: Any) -> float:
    """Of all of the experts: sorting, both products, activation, sum."""
    return measure(
        lambda x, weights, ids: grouped_gemm_triton.experts(
            x, inputs.gate_up, inputs.down, weights, ids, 0, tiles
        ),
        [(inputs.x, weights, ids) for weights, ids in inputs.routings],
    )


def is_right(inputs: Inputs, tiles: Any) -> bool:
    weights, ids = inputs.routings[-1]
    args = (inputs.x[:64], inputs.gate_up, inputs.down, weights[:64], ids[:64], 0)
    wanted = reference.experts(*args)
    return difference(grouped_gemm_triton.experts(*args, tiles), wanted) < TOLERANCE


def floor_us(inputs: Inputs) -> float:
    """Reading the distinct experts hit, or the products at the tensor cores' rate."""
    shape = inputs.shape
    expert_bytes = 3 * shape.size * shape.hidden * inputs.dtype.itemsize
    held = inputs.num_pairs * shape.held / shape.experts
    flops = held * 6 * shape.size * shape.hidden
    return max(inputs.distinct() * expert_bytes / BANDWIDTH, flops / FLOPS) * 1e6


def tune(shape: Shape, args: argparse.Namespace, dtype: torch.dtype) -> list[dict[str, Any]]:
    configs = TINY_CANDIDATES if args.dry_run else tuned.CANDIDATES
    inputs, rows = Inputs(shape, "cpu" if args.dry_run else "cuda", dtype), []
    for tokens in args.tokens:
        failures: list[str] = []
        inputs.set_tokens(tokens)
        tiles, products = best_tiles(inputs, configs, failures)
        row = {
            "shape": shape.name,
            "key": list(shape.key),
            "tokens": tokens,
            "pairs": inputs.num_pairs,
            "distinct_experts": inputs.distinct(),
            "tiles": None if tiles is None else [list(tiles.gate_up), list(tiles.down)],
            "products_us": round(products, 2),
            "all_us": None if tiles is None else round(whole_us(inputs, tiles), 2),
            "floor_us": round(floor_us(inputs), 2),
            "ok": tiles is not None and is_right(inputs, tiles),
            "failures": failures,
        }
        print(_line(row), file=sys.stderr, flush=True)
        rows.append(row)
    return rows


def _line(row: dict[str, Any]) -> str:
    state = "ok" if row["ok"] else "FAILED"
    return (
        f"{row['shape']:22s} {row['tokens']:5d} tokens {row['distinct_experts']:6.1f} experts "
        f"{row['all_us'] or 0:9.1f} us (products {row['products_us']:.1f}, floor "
        f"{row['floor_us']:.1f}) {state} {row['tiles']} {' '.join(row['failures'])}"
    )


def table_of(rows: list[dict[str, Any]]) -> list[Any]:
    """Entries for tuned.json, of what was right."""
    found: dict[tuple[int, ...], list[Any]] = {}
    for row in sorted(rows, key=lambda row: row["pairs"]):
        if row["ok"]:
            found.setdefault(tuple(row["key"]), []).append([row["pairs"], *row["tiles"]])
    return [[list(key), entries] for key, entries in found.items()]


def write_table(path: Path, device: str, entries: list[Any]) -> None:
    """In place of what the file says of these shapes on this device."""
    old = json.loads(path.read_text()) if path.exists() else {}
    new = {tuple(key): found for key, found in old.get(device, [])}
    new |= {tuple(key): found for key, found in entries}
    old[device] = [[list(key), found] for key, found in sorted(new.items())]
    path.write_text(json.dumps(old) + "\n")


def compile_all() -> None:
    """Fill Triton's cache from many processes."""
    jobs = 12
    workers = [
        subprocess.Popen([sys.executable, __file__, "--compile", str(job), str(jobs)])
        for job in range(jobs)
    ]
    for worker in workers:
        worker.wait()


def compile_some(job: int, jobs: int) -> None:
    inputs = Inputs(Shape("compile", 16, 16, 2048, 768, 8), "cuda", torch.bfloat16)
    inputs.set_tokens(16)
    for index, config in enumerate(tuned.CANDIDATES):
        if index % jobs != job:
            continue
        pairs, blocks = inputs.sorted_pairs(config[0])[0]
        for k in (8, 2):
            grouped_gemm_triton.grouped_gemm(
                inputs.x, inputs.gate_up, pairs, blocks, inputs.num_pairs, k, config
            )
        inner = silu_and_mul(inputs._normal(inputs.num_pairs, 1536))
        grouped_gemm_triton.grouped_gemm(
            inner, inputs.down, pairs, blocks, inputs.num_pairs, 1, config
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", help="names of shapes, or how they begin")
    parser.add_argument("--tokens", type=int, nargs="+", default=None)
    parser.add_argument("--out", type=Path, help="write every figure to this JSON file")
    parser.add_argument("--write", action="store_true", help=f"update {TABLE_FILE.name}")
    parser.add_argument("--table", type=Path, default=TABLE_FILE, help="what --write updates")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--compile", type=int, nargs=2)
    args = parser.parse_args()
    if args.compile:
        compile_some(*args.compile)
        return 0
    args.tokens = args.tokens or ([1, 5] if args.dry_run else TOKENS)
    if not args.dry_run:
        require_gpu()
        compile_all()
    shapes = TINY if args.dry_run else SHAPES
    rows: list[dict[str, Any]] = []
    device = "dry run" if args.dry_run else torch.cuda.get_device_name()
    for shape in shapes:
        if args.only and not any(shape.name.startswith(one) for one in args.only):
            continue
        rows += tune(shape, args, torch.float32 if args.dry_run else torch.bfloat16)
        if args.out:
            args.out.write_text(json.dumps(rows, indent=1) + "\n")
        if args.write:
            write_table(args.table, device, table_of(rows))
    print(json.dumps(rows))
    return 0 if all(row["ok"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
