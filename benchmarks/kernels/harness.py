"""Check a kernel against its reference, then time it beside others and the roofline.

Inputs are fresh for every check, outputs are poisoned with NaN, timings are medians of CUDA graph
replays that walk through several input sets, so that they do not fit in the L2 cache.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

import torch
from triton.runtime.errors import TritonError

#: Bytes that one round of input sets should have: several times the 60 MB of L2.
ROUND_BYTES = 400e6
MAX_SETS = 24
REPLAYS = 20
#: Copy bandwidth of an H200, read + write.
BANDWIDTH = 4.3e12
#: Dense bf16 rate of an H200.
FLOPS = 785e12

Fn = Callable[..., Any]

#: What a kernel or a rival may fail with; others are mistakes of the benchmark itself.
FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, OSError, TritonError)


@dataclass
class Case:
    """One op at one shape.

    make(seed) gives the inputs; kernel and reference take them and give a tensor or a tuple of
    tensors (caches that they write included); others: name -> what to time beside the kernel,
    given inputs. bytes and flops: the least that must be moved and done.
    """

    family: str
    name: str
    make: Callable[[int], tuple[Any, ...]]
    kernel: Fn
    reference: Fn
    others: dict[str, Fn] = field(default_factory=dict)
    bytes: float = 0.0
    flops: float = 0.0
    tolerance: float = 1e-2


@dataclass
class Result:
    family: str
    name: str
    ok: bool
    error: float
    us: float
    floor_us: float
    others_us: dict[str, float]
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def require_gpu(hint: str = "--dry-run tries the program without one") -> None:
    """End the program in one line where there is none."""
    if not torch.cuda.is_available():
        raise SystemExit(f"error: torch sees no CUDA device here; {hint}")


def _poison(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype.is_floating_point:
        return tensor.fill_(torch.nan)
    return tensor.fill_(torch.iinfo(tensor.dtype).min // 3)


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """torch.empty and empty_like give NaN, or absurd integers."""
    empty, empty_like = torch.empty, torch.empty_like
    torch.empty = lambda *a, **k: _poison(empty(*a, **k))
    torch.empty_like = lambda *a, **k: _poison(empty_like(*a, **k))
    try:
        yield
    finally:
        torch.empty, torch.empty_like = empty, empty_like


def _tensors(outputs: Any) -> tuple[torch.Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def difference(got: torch.Tensor, want: torch.Tensor) -> float:
    """Relative error in the 2-norm; for integers the share that differs; NaN counts as infinite."""
    if got.shape != want.shape or got.dtype != want.dtype:
        return math.inf
    if not got.dtype.is_floating_point:
        return (got != want).float().mean().item() if got.numel() else 0.0
    got, want = got.double(), want.double()
    error = ((got - want).norm() / want.norm().clamp(min=1e-30)).item()
    return error if math.isfinite(error) else math.inf


def check(case: Case, seed: int = 1) -> float:
    """The largest `difference` of all outputs, for two fresh sets of inputs."""
    worst = 0.0
    for offset in range(2):
        with poisoned_memory():
            got = _tensors(case.kernel(*case.make(seed + offset)))
        want = _tensors(case.reference(*case.make(seed + offset)))
        if len(got) != len(want):
            return math.inf
        worst = max([worst, *map(difference, got, want)])
    return worst


def _median_of_replays(fn: Fn, sets: list[tuple[Any, ...]]) -> float:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        fn(*sets[0])
        fn(*sets[-1])
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    keep = []
    with torch.cuda.graph(graph):
        keep += [fn(*inputs) for inputs in sets]
    graph.replay()
    times = []
    for _ in range(REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1000 / len(sets))
    return statistics.median(times)


def measure(fn: Fn, sets: list[tuple[Any, ...]]) -> float:
    """Microseconds a call: graph replays on a GPU, one call's wall clock elsewhere."""
    if sets[0] and any(torch.is_tensor(t) and t.is_cuda for t in sets[0]):
        return _median_of_replays(fn, sets)
    start = time.perf_counter()
    fn(*sets[0])
    return (time.perf_counter() - start) * 1e6


@cache
def _flashinfer_workspace() -> torch.Tensor:
    """Zeros, as flashinfer counts on at first use; what is measured runs on one stream."""
    return torch.zeros(512 << 20, dtype=torch.uint8, device="cuda")


def flashinfer_decode(
    table: torch.Tensor, lens: torch.Tensor, heads: int, pool: torch.Tensor
) -> Any:
    """flashinfer's decode attention, planned: run(q, (k_cache, v_cache)).

    table: int32 [rows, pages], the pages of rows of equal length; pool: k_cache or v_cache,
    [num_pages, page_size, kv_heads, dim].
    """
    import flashinfer

    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        _flashinfer_workspace(), "NHD", use_tensor_cores=True, backend="fa2"
    )
    rows, pages = table.shape
    _, page_size, kv_heads, dim = pool.shape
    bounds = torch.arange(rows + 1, dtype=torch.int32) * pages
    last = (lens.cpu() - 1) % page_size + 1
    kind = {"q_data_type": pool.dtype, "kv_data_type": pool.dtype}
    wrapper.plan(bounds, table.flatten(), last, heads, kv_heads, dim, page_size, **kind)
    return wrapper.run


def input_sets(case: Case, dry_run: bool) -> list[tuple[Any, ...]]:
    first = case.make(100)
    if dry_run:
        return [first]
    size = sum(t.numel() * t.element_size() for t in first if torch.is_tensor(t))
    count = int(min(MAX_SETS, max(2, ROUND_BYTES // max(size, 1))))
    return [first] + [case.make(101 + i) for i in range(count - 1)]


def run_case(case: Case, dry_run: bool) -> Result:
    """Check and time; an exception of a rival becomes a note, one of the kernel a failed row."""
    floor = max(case.bytes / BANDWIDTH, case.flops / FLOPS) * 1e6
    note = ""
    try:
        error = check(case)
        sets = input_sets(case, dry_run)
        us = measure(case.kernel, sets)
    except FAILURES as failure:
        text = f"{type(failure).__name__}: {str(failure).splitlines()[:1]}"
        return Result(case.family, case.name, False, math.inf, math.nan, floor, {}, text)
    others = {}
    for name, fn in case.others.items():
        try:
            others[name] = measure(fn, sets)
        except FAILURES as failure:
            note += f"{name}: {type(failure).__name__} {str(failure)[:80]} "
    ok = error <= case.tolerance
    return Result(case.family, case.name, ok, error, us, floor, others, note.strip())


def print_table(results: list[Result]) -> None:
    print(
        f"{'op':12s} {'case':38s} {'check':>9s} {'us':>9s} {'floor':>8s} {'of floor':>8s}  others us"
    )
    for r in results:
        share = f"{100 * r.floor_us / r.us:7.0f}%" if r.us > 0 else "      - "
        others = "  ".join(f"{name} {us:.1f}" for name, us in r.others_us.items())
        state = f"{r.error:9.1e}" if r.ok else "   FAILED"
        print(
            f"{r.family:12s} {r.name:38s} {state} {r.us:9.1f} {r.floor_us:8.1f} {share}  "
            f"{others} {r.note}"
        )
