"""Programmatic dependent launch (compute capability 9.0 on): a kernel starts while the one before
it still runs, which hides the time of a launch and the first loads of weights.

What a kernel launched with `options` must keep to: every program calls `wait` before it touches
anything that another kernel writes or reads; ahead of that it may read what never changes, such as
weights. `wait` returns when all kernels before are done, since each of them has waited likewise; so
`release` may stand at the very start.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

#: Bytes of a line of L2.
_LINE = tl.constexpr(128)


@cache
def available(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def options(tensor: torch.Tensor) -> dict[str, bool]:
    """Keyword arguments of the launch of a kernel that takes PDL: tl.constexpr."""
    if available(tensor.device):
        return {"PDL": True, "launch_pdl": True}
    return {"PDL": False}


@triton.jit
def release():
    """The next kernel may start as soon as every program of this one is here or gone."""
    gdc_launch_dependents()


@triton.jit
def wait():
    """Wait until every kernel before this one is done and what it wrote can be read."""
    gdc_wait()


@triton.jit
def prefetch(rows, first, size, COLUMNS: tl.constexpr):
    """Bring columns [first, first + COLUMNS) of a weight's rows into L2, and do not wait for it.

    rows: pointers to their first columns.  size: columns of a row; COLUMNS a power of two.
    """
    PER_LINE: tl.constexpr = _LINE // (rows.dtype.element_ty.primitive_bitwidth // 8)
    column = first + tl.arange(0, COLUMNS // PER_LINE) * PER_LINE
    at = rows[:, None] + tl.minimum(column, size - 1)[None, :]
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [at.to(tl.int64)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def enter(PDL: tl.constexpr):
    """`release` and `wait`, for kernels with nothing to do ahead."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
