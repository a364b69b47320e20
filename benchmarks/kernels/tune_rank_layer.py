"""Tune the small-M linears of one rank of a tensor-parallel group, and write the table.

    python benchmarks/kernels/tune_rank_layer.py --shape llama-3.1-70b --tp 4 8 --out tuned.json

One GPU, no other ranks: a rank's slices of a decoder layer run where they run in the engine, between
norms and attention, in a captured chain (see tune_decode_layer.py). The output head is its slice of
the vocabulary. --out is kernels/gemm/tuned.json where nothing else is said: the engine reads that
file, on top of tuned.py. What the file says of other shapes stays. Under three minutes for both
sizes on an H200 (estimated: its parts were timed for Llama-3.1-8B). --dry-run goes through the same
code without a GPU, in Triton's interpreter, on a tiny layer; it writes only where --out says.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import torch  # noqa: E402
from tune_decode_layer import (  # noqa: E402
    DEVICE,
    DRY_RUN,
    MARGIN,
    Chain,
    Setting,
    Shape,
    compile_all,
    configs_for,
    first_setting,
    product,
    require_gpu,
    tune,
)

from hpcserve.bench.stand_in import SHAPES as MODELS  # noqa: E402
from hpcserve.kernels.gemm import small_m_triton  # noqa: E402

#: (rows, N, K) -> configuration or None, of plain linears and of those that end with silu and mul.
Tables = dict[str, dict[tuple[int, int, int], Any]]

TINY = {
    "hidden_size": 32,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 250,
}
SHAPES = {"tiny": TINY} if DRY_RUN else MODELS
TABLE_FILE = ROOT / "kernels" / "gemm" / "tuned.json"


def rank_shape(name: str, tp: int) -> Shape:
    """A rank's part of a layer."""
    model = SHAPES[name]
    heads = model["num_attention_heads"]
    return Shape(
        hidden=model["hidden_size"],
        intermediate=model["intermediate_size"] // tp,
        heads=heads // tp,
        kv_heads=max(1, model["num_key_value_heads"] // tp),
        dim=model.get("head_dim", model["hidden_size"] // heads),
    )


def entries(shape: Shape, rows: int, setting: Setting) -> Tables:
    """What a tuned layer says for the tables; None where cuBLAS does best."""
    found: Tables = {"linear": {}, "gated": {}}
    for name, size in shape.sizes.items():
        config = setting.configs.get(name)
        gated = name == "gate_up" and setting.gated
        found["linear"][(rows, *size)] = None if gated else config
        if name == "gate_up":
            found["gated"][(rows, *size)] = config if gated else None
    return found


def head_config(vocab: int, hidden: int, rows: int) -> Any:
    """The fastest configuration of the head's slice, None for cuBLAS."""
    from harness import measure

    weights = [torch.randn(vocab, hidden, device=DEVICE).bfloat16() / 64 for _ in range(2)]
    x = torch.randn(rows, hidden, device=DEVICE).bfloat16()
    best, best_us = None, measure(lambda x, w: product(None, x, w), [(x, w) for w in weights])
    for config in configs_for(rows):
        if not small_m_triton.fits(config, vocab, hidden):
            continue
        us = measure(lambda x, w, c=config: product(c, x, w), [(x, w) for w in weights])
        if us < best_us * MARGIN:
            best, best_us = config, us
    print(f"rows {rows} head {vocab} x {hidden}: {best} {best_us:.2f} us", flush=True)
    return best


def tune_rank(name: str, tp: int, all_rows: list[int], context: int) -> Tables:
    shape, weights, log, best = rank_shape(name, tp), None, [], Setting()
    tables: Tables = {"linear": {}, "gated": {}}
    vocab = -(-SHAPES[name]["vocab_size"] // tp)
    for rows in all_rows:
        chain = Chain(shape, rows, context, weights)
        weights = chain.weights
        print(f"{name} tp {tp}, rows {rows}: {chain.measure(Setting()):.2f} us a layer with cuBLAS")
        # Fewer rows take the same steps: what was best for them may be better than the table.
        start = min((first_setting(shape, rows), best), key=chain.measure)
        best = tune(chain, start, log)
        for kind, found in entries(shape, rows, best).items():
            tables[kind] |= found
        head = head_config(vocab, shape.hidden, rows)
        tables["linear"][rows, vocab, shape.hidden] = head
        print(f"{name} tp {tp}, rows {rows}: {chain.measure(best):.2f} us a layer", flush=True)
    return tables


def merged(old: dict[str, Any], device: str, tables: Tables) -> dict[str, Any]:
    """The file's content with a device's new entries in place of its old ones."""
    kept = old.get(device, {})
    new: dict[str, list[Any]] = {}
    for kind in ("linear", "gated"):
        whole = {tuple(key): config for key, config in kept.get(kind, [])}
        whole |= tables[kind]
        new[kind] = [
            [list(key), list(config)] for key, config in sorted(whole.items()) if config is not None
        ]
    return {**old, device: new}


def write(path: Path, device: str, tables: Tables) -> None:
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(as_text(merged(old, device, tables)))


def as_text(content: dict[str, Any]) -> str:
    """JSON with one entry a line."""
    devices = []
    for device, kinds in content.items():
        lists = []
        for kind, entries in kinds.items():
            lines = ",\n".join(f"  {json.dumps(entry)}" for entry in entries)
            lists.append(f' "{kind}": [\n{lines}\n ]')
        devices.append(f"{json.dumps(device)}: {{\n" + ",\n".join(lists) + "\n}")
    return "{" + ",\n".join(devices) + "}\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    usual = "tiny" if DRY_RUN else "llama-3.1-70b"
    parser.add_argument("--shape", default=usual, choices=sorted(SHAPES))
    parser.add_argument("--tp", type=int, nargs="+", default=[2] if DRY_RUN else [4, 8])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--context", type=int, default=40 if DRY_RUN else 1024)
    parser.add_argument("--out", type=Path, default=None if DRY_RUN else TABLE_FILE)
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    if not DRY_RUN:
        require_gpu()
        compile_all()
    for tp in args.tp:
        tables = tune_rank(args.shape, tp, args.rows, args.context)
        if args.out is not None:
            write(args.out, "dry run" if DRY_RUN else torch.cuda.get_device_name(), tables)
    return 0


if __name__ == "__main__":
    sys.exit(main())
