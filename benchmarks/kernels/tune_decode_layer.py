"""Tune the small-M linears where they run: in a captured chain of decoder layers.

`python benchmarks/kernels/tune_decode_layer.py [--rows 1 2 4 8 16] [--out FILE]` tries every
configuration of each linear of the layer, gate-up with and without its activation, keeps the
fastest while it goes on to the next, and prints what tuned.py should hold. --dry-run goes through
the same code without a GPU, in Triton's interpreter, on a tiny layer.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
DRY_RUN = "--dry-run" in sys.argv
if DRY_RUN:
    os.environ["TRITON_INTERPRET"] = "1"

import torch  # noqa: E402
from harness import require_gpu  # noqa: E402

from hpcserve.kernels.attention import paged_decode_triton  # noqa: E402
from hpcserve.kernels.attention.reference import Fresh  # noqa: E402
from hpcserve.kernels.gemm import reference, small_m_triton  # noqa: E402
from hpcserve.kernels.launch import dependent  # noqa: E402
from hpcserve.ops.activation import silu_and_mul  # noqa: E402
from hpcserve.ops.norm import add_rms_norm  # noqa: E402
from hpcserve.ops.rope import cos_sin_cache, rope_kv_write  # noqa: E402

CONFIGS: list[tuple[int, int, int, int, int]] = [
    (64, 128, 1, 4, 5), (64, 128, 2, 4, 5), (64, 128, 4, 4, 5), (64, 256, 1, 4, 4),
    (64, 256, 2, 4, 4), (64, 256, 4, 4, 4), (32, 256, 1, 4, 5), (32, 256, 2, 4, 5),
    (128, 128, 1, 8, 4), (128, 128, 2, 8, 4), (64, 128, 1, 4, 3), (64, 256, 3, 4, 4),
    (64, 128, 3, 4, 5), (64, 256, 6, 4, 4), (64, 128, 6, 4, 5),
]  # fmt: skip
#: For more than 16 rows.
WIDE_CONFIGS = list(small_m_triton.WIDE_CANDIDATES)
LAYERS = 6
PAGE = 16
DEVICE = "cuda"
_CALLS = itertools.count(1)
if DRY_RUN:
    CONFIGS = WIDE_CONFIGS = [(16, 32, 1, 4, 2), (16, 16, 2, 4, 2)]
    LAYERS, DEVICE = 1, "cpu"
#: A configuration must be faster by this much to replace the one before it.
MARGIN = 0.997


@dataclass(frozen=True)
class Shape:
    hidden: int = 4096
    intermediate: int = 14336
    heads: int = 32
    kv_heads: int = 8
    dim: int = 128

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        qkv = (self.heads + 2 * self.kv_heads) * self.dim
        return {
            "qkv": (qkv, self.hidden),
            "o": (self.hidden, self.heads * self.dim),
            "gate_up": (2 * self.intermediate, self.hidden),
            "down": (self.hidden, self.intermediate),
        }


@dataclass(frozen=True)
class Setting:
    """Configuration of each linear, None for cuBLAS; which ones are gated; of the
    attention, (tile, min_split); rotates: the attention rotates q and k and writes the last
    token's k and v itself."""

    configs: dict[str, Any] = field(default_factory=dict)
    gated: bool = False
    rotates: bool = False
    attention: tuple[Any, int] = ((64, 4, 3), 256)

    def with_(self, name: str, config: Any, gated: bool) -> Setting:
        gated = gated if name == "gate_up" else self.gated
        return replace(self, configs={**self.configs, name: config}, gated=gated)


TINY = Shape(hidden=32, intermediate=32, heads=2, kv_heads=1, dim=16)


def product(config: Any, x: torch.Tensor, w: torch.Tensor, gates: bool = False) -> torch.Tensor:
    if config is None:
        return reference.linear(x, w)
    return small_m_triton.linear(x, w, None, None, config, gates)


class Chain:
    """LAYERS layers with weights and KV of their own, at `rows` rows of `context` tokens."""

    def __init__(self, shape: Shape, rows: int, context: int, weights: Any = None) -> None:
        g = torch.Generator(DEVICE).manual_seed(0)

        def rand(*size: int, scale: float = 1.0) -> torch.Tensor:
            return torch.randn(*size, generator=g, device=DEVICE, dtype=torch.bfloat16) * scale

        self.shape, self.rows = shape, rows
        self.weights = weights or [
            {name: rand(n, k, scale=k**-0.5) for name, (n, k) in shape.sizes.items()}
            for _ in range(LAYERS)
        ]
        pages = -(-context // PAGE)
        self.pools = [rand(2, rows * pages, PAGE, shape.kv_heads, shape.dim) for _ in range(LAYERS)]
        order = torch.randperm(rows * pages, generator=g, device=DEVICE).int()
        self.table = order.view(rows, pages)
        self.lens = torch.full((rows,), context, dtype=torch.int32, device=DEVICE)
        self.positions = self.lens.long() - 1
        last = self.table[:, (context - 1) // PAGE].long()
        self.slots = last * PAGE + (context - 1) % PAGE
        inv_freq = 1.0 / 500000.0 ** (torch.arange(0, shape.dim, 2, device=DEVICE) / shape.dim)
        self.cos_sin = cos_sin_cache(inv_freq, context + 1)
        self.gain = torch.ones(shape.hidden, device=DEVICE, dtype=torch.bfloat16)
        self.x = rand(rows, shape.hidden)

    def run(self, setting: Setting, attend: Any = None) -> torch.Tensor:
        s, x, residual = self.shape, self.x, self.x
        for w, (k_cache, v_cache) in zip(self.weights, self.pools, strict=True):
            normed, residual = add_rms_norm(x, residual, self.gain, 1e-5)
            qkv = product(setting.configs.get("qkv"), normed, w["qkv"])
            q, k, v = qkv.view(self.rows, -1, s.dim).split((s.heads, s.kv_heads, s.kv_heads), 1)
            out = self.attend(q, k, v, k_cache, v_cache, setting, attend)
            out = out.view(self.rows, -1)
            x = product(setting.configs.get("o"), out, w["o"])
            normed, residual = add_rms_norm(x, residual, self.gain, 1e-5)
            hidden = product(setting.configs.get("gate_up"), normed, w["gate_up"], setting.gated)
            if not setting.gated:
                hidden = silu_and_mul(hidden)
            x = product(setting.configs.get("down"), hidden, w["down"])
        return x + residual

    def attend(
        self, q: Any, k: Any, v: Any, k_cache: Any, v_cache: Any, setting: Setting, other: Any
    ) -> torch.Tensor:
        scale, (tile, min_split) = self.shape.dim**-0.5, setting.attention
        fresh = None
        if setting.rotates:
            fresh = Fresh(k, v, self.cos_sin)
        else:
            to = (k_cache, v_cache, self.slots)
            q = rope_kv_write(q, k, v, self.positions, self.cos_sin, *to)
        if other is not None:
            out: torch.Tensor = other(q, (k_cache, v_cache))
            return out
        return paged_decode_triton.paged_decode(
            q, k_cache, v_cache, self.table, self.lens, scale, None, None, tile, min_split, fresh
        )

    def measure(self, setting: Setting, attend: Any = None) -> float:
        """Microseconds a layer, the median of graph replays; in a dry run, less every time."""
        if DRY_RUN:
            self.run(setting, attend)
            return 1000.0 / next(_CALLS)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.run(setting, attend)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = self.run(setting, attend)
        times = []
        graph.replay()
        for _ in range(15):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) * 1000 / LAYERS)
        del out
        return statistics.median(times)

    def flashinfer(self) -> Any:
        if DRY_RUN:
            return None
        import flashinfer

        s = self.shape
        workspace = torch.zeros(128 << 20, dtype=torch.uint8, device="cuda")
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            workspace, "NHD", use_tensor_cores=True, backend="fa2"
        )
        pages = self.table.shape[1]
        bounds = torch.arange(self.rows + 1, dtype=torch.int32) * pages
        last = (self.lens.cpu() - 1) % PAGE + 1
        kind = torch.bfloat16
        wrapper.plan(
            bounds, self.table.flatten(), last, s.heads, s.kv_heads, s.dim, PAGE,
            q_data_type=kind, kv_data_type=kind,
        )  # fmt: skip
        return wrapper.run


def compile_all() -> None:
    """Fill Triton's cache from many processes, since a compilation takes a second or more."""
    jobs = 14
    workers = [
        subprocess.Popen([sys.executable, __file__, "--compile", str(job), str(jobs)])
        for job in range(jobs)
    ]
    for worker in workers:
        worker.wait()


def compile_some(job: int, jobs: int) -> None:
    weight = torch.zeros(8448, 4096, device="cuda", dtype=torch.bfloat16)
    few = [(config, 1) for config in CONFIGS]
    wide = [(config, rows) for config in WIDE_CONFIGS for rows in (32, 64)]
    for i, ((config, rows), gates, programmatic) in enumerate(
        itertools.product(few + wide, (False, True), (True, False))
    ):
        if i % jobs == job:
            x = torch.zeros(rows, 4096, device="cuda", dtype=torch.bfloat16)
            dependent.available = lambda device, on=programmatic: on
            product(config, x, weight, gates)


def configs_for(rows: int) -> list[Any]:
    return CONFIGS if rows <= 16 else WIDE_CONFIGS


def tune(chain: Chain, start: Setting, log: list[Any]) -> Setting:
    """Coordinate descent over the four linears."""
    best, best_us = start, chain.measure(start)
    for name in ("gate_up", "down", "qkv", "o", "gate_up"):
        n, k = chain.shape.sizes[name]
        found = best
        for config, gated in itertools.product([None, *configs_for(chain.rows)], (False, True)):
            if gated and (name != "gate_up" or config is None):
                continue
            if config is not None and not small_m_triton.fits(config, n, k):
                continue
            setting = best.with_(name, config, gated)
            us = chain.measure(setting)
            log.append((chain.rows, name, config, gated, us))
            if us < best_us * MARGIN:
                found, best_us = setting, us
        best = found
        print(
            f"rows {chain.rows} {name}: {best.configs.get(name)} "
            f"{'gated' if best.gated else ''} -> {best_us:.2f} us a layer",
            flush=True,
        )
    return best


def race_check(chain: Chain, setting: Setting) -> str:
    """The same bits with programmatic launch as without it, replay after replay."""
    available = dependent.available
    dependent.available = lambda device: False
    want = chain.run(setting)
    dependent.available = available
    if DRY_RUN:
        return "the same bits" if torch.equal(chain.run(setting), want) else "DIFFERS"
    graph = torch.cuda.CUDAGraph()
    chain.run(setting)
    with torch.cuda.graph(graph):
        out = chain.run(setting)
    for _ in range(200):
        out.fill_(torch.nan)
        graph.replay()
        if not torch.equal(out, want):
            return "DIFFERS"
    return "the same bits in 200 replays"


def first_setting(shape: Shape, rows: int) -> Setting:
    device = "dry run" if DRY_RUN else torch.cuda.get_device_name()
    table = small_m_triton.TUNED.get(device, {})
    return Setting({name: table.get((rows, *size)) for name, size in shape.sizes.items()})


def without_pdl(chain: Chain, setting: Setting) -> float:
    available = dependent.available
    dependent.available = lambda device: False
    try:
        return chain.measure(setting)
    finally:
        dependent.available = available


def attention_sweep(chain: Chain, setting: Setting, log: list[Any]) -> Setting:
    tiles = [(64, 4, 3), (64, 4, 2)]
    best, best_us = setting, chain.measure(setting)
    for min_split, tile in itertools.product((64, 128), tiles):
        other = replace(setting, attention=(tile, min_split))
        us = chain.measure(other)
        log.append((chain.rows, "attention", tile, min_split, us))
        if us < best_us * MARGIN:
            best, best_us = other, us
    us = chain.measure(setting, chain.flashinfer())
    log.append((chain.rows, "flashinfer", us))
    print(
        f"rows {chain.rows}: own attention {best.attention} {best_us:.2f}, flashinfer {us:.2f}",
        flush=True,
    )
    return best


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--compile", type=int, nargs=2)
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    if arguments.compile:
        compile_some(*arguments.compile)
        return 0
    if not DRY_RUN:
        require_gpu()
        compile_all()
    shape, log, chosen, weights = TINY if DRY_RUN else Shape(), [], {}, None
    for rows in arguments.rows:
        chain = Chain(shape, rows, arguments.context, weights)
        weights = chain.weights
        start = first_setting(shape, rows)
        plain, pdl = without_pdl(chain, start), chain.measure(start)
        print(f"rows {rows}: {plain:.2f} us a layer, with PDL {pdl:.2f}", flush=True)
        log.append((rows, "start", plain, pdl))
        best = attention_sweep(chain, start, log)
        best = tune(chain, best, log)
        other = replace(best, rotates=not best.rotates)
        print(f"rows {rows}: {chain.measure(other):.2f} us a layer: {other}", flush=True)
        log.append((rows, "rotates", other.rotates, chain.measure(other)))
        print(race_check(chain, best), flush=True)
        for columns in (128, 512):
            small_m_triton.PREFETCH = columns
            log.append((rows, "prefetch", columns, chain.measure(best)))
            print(log[-1], flush=True)
        small_m_triton.PREFETCH = 256
        print(
            f"rows {rows}: best with PDL {chain.measure(best):.2f}, without "
            f"{without_pdl(chain, best):.2f}: {best}",
            flush=True,
        )
        chosen[rows] = {
            "configs": best.configs,
            "gated": best.gated,
            "attention": best.attention,
        }
    if arguments.out:
        arguments.out.write_text(json.dumps({"chosen": chosen, "log": log}, default=str))
    return 0


if __name__ == "__main__":
    sys.exit(main())
