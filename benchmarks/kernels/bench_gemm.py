"""Cases of the small-M linear: every candidate against cuBLAS; prints what tuned.py should hold."""

from __future__ import annotations

import math
from typing import Any

import torch
from harness import BANDWIDTH, FAILURES, Case, Result, check, input_sets, measure

from hpcserve.kernels.gemm import reference, shapes, small_m_triton

#: A candidate must beat cuBLAS by this much to enter the table.
MARGIN = 0.98


def _case(rows: int, n: int, k: int, device: str, dtype: torch.dtype, config: Any) -> Case:
    def make(seed: int) -> tuple[Any, ...]:
        g = torch.Generator(device).manual_seed(seed)
        x = torch.randn(rows, k, generator=g, device=device).to(dtype)
        weight = torch.randn(n, k, generator=g, device=device, dtype=torch.float32).to(dtype)
        residual = torch.randn(rows, n, generator=g, device=device).to(dtype)
        return x, weight / k**0.5, residual

    return Case(
        "linear",
        f"{rows} x {n} x {k}",
        make,
        lambda x, w, r: small_m_triton.linear(x, w, None, None, config),
        lambda x, w, r: reference.linear(x, w),
        bytes=n * k * dtype.itemsize,
    )


def _sweep(
    rows: int, n: int, k: int, configs: list[Any], device: str, dtype: torch.dtype, dry_run: bool
) -> tuple[Result, Any]:
    """The fastest right candidate, beside cuBLAS; and its configuration if it belongs in the
    table."""
    sets = input_sets(_case(rows, n, k, device, dtype, configs[0]), dry_run)
    cublas = measure(lambda x, w, r: reference.linear(x, w), sets)
    best: tuple[float, Any, float] = (math.inf, None, math.inf)
    notes = []
    for config in configs:
        case = _case(rows, n, k, device, dtype, config)
        try:
            error = check(case)
            us = measure(case.kernel, sets)
        except FAILURES as failure:
            notes.append(f"{config}: {type(failure).__name__} {str(failure)[:60]}")
            continue
        if error > case.tolerance:
            notes.append(f"{config}: WRONG, error {error:.1e}")
        elif us < best[0]:
            best = (us, config, error)
    us, config, error = best
    floor = n * k * dtype.itemsize / BANDWIDTH * 1e6
    result = Result(
        "linear", f"{rows} x {n} x {k} {config}", config is not None and not notes, error, us,
        floor, {"cublas": cublas}, "; ".join(notes),
    )  # fmt: skip
    return result, config if us < MARGIN * cublas else None


def run(device: str, dtype: torch.dtype, dry_run: bool) -> list[Result]:
    """Sweep all shapes and print the table of those where a candidate wins."""
    results, table = [], {}
    if dry_run:
        sweeps = [(m, n, k, [c]) for m, n, k, c in shapes.SMALL]
        dtype = torch.float16
    else:
        few, wide = small_m_triton.CANDIDATES, small_m_triton.WIDE_CANDIDATES
        sweeps = [(m, n, k, list(few if m <= 16 else wide)) for m, n, k in shapes.FULL]
    for rows, n, k, configs in sweeps:
        fitting = [config for config in configs if small_m_triton.fits(config, n, k)]
        result, winner = _sweep(rows, n, k, fitting, device, dtype, dry_run)
        results.append(result)
        if winner:
            table[rows, n, k] = winner
    name = torch.cuda.get_device_name() if device == "cuda" else device
    print(f"for kernels/gemm/tuned.py:\n    {name!r}: {{")
    for key, config in table.items():
        print(f"        {key}: {config},")
    print("    },")
    return results
