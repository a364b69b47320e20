"""silu(gate) * up: one program a row and block of columns."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..launch.dependent import enter, options

BLOCK = 1024


@triton.jit
def _silu_and_mul_kernel(
    gate_up_ptr, out_ptr, row_stride, size, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    enter(PDL)
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < size
    gate_ptr = gate_up_ptr + row * row_stride + cols
    gate = tl.load(gate_ptr, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_ptr + size, mask=mask, other=0.0).to(tl.float32)
    out = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out_ptr + row * size + cols, out.to(out_ptr.dtype.element_ty), mask=mask)


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """See reference.silu_and_mul."""
    size = gate_up.shape[-1] // 2
    rows = gate_up.reshape(-1, 2 * size)
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    out = torch.empty((*gate_up.shape[:-1], size), dtype=gate_up.dtype, device=gate_up.device)
    if rows.shape[0]:
        grid = (rows.shape[0], triton.cdiv(size, BLOCK))
        _silu_and_mul_kernel[grid](
            rows, out, rows.stride(0), size, BLOCK=BLOCK, num_warps=4, **options(rows)
        )
    return out
