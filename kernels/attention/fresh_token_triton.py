"""What a decode does to its own token first: norm and rotation of heads, and the KV write."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rotated(x_at, norm_ptr, angle_ptr, mask, eps, HAS_NORM: tl.constexpr, DIM: tl.constexpr):
    """Heads at x_at [H, 1], normalised and rotated in fp32: [H, DIM]. angle_ptr: the position's
    cosines, then its sines."""
    HALF: tl.constexpr = DIM // 2
    col = tl.arange(0, DIM)
    pair = (col + HALF) % DIM
    x = tl.load(x_at + col[None, :], mask=mask, other=0.0).to(tl.float32)
    other = tl.load(x_at + pair[None, :], mask=mask, other=0.0).to(tl.float32)
    if HAS_NORM:
        scale = tl.rsqrt(tl.sum(x * x, axis=1) / DIM + eps)[:, None]
        x *= scale * tl.load(norm_ptr + col).to(tl.float32)[None, :]
        other *= scale * tl.load(norm_ptr + pair).to(tl.float32)[None, :]
    cos = tl.load(angle_ptr + col % HALF)[None, :]
    sin = tl.load(angle_ptr + HALF + col % HALF)[None, :]
    return x * cos + tl.where(col < HALF, -1.0, 1.0)[None, :] * other * sin


@triton.jit
def write_last(
    k_at, v_at, k_out, v_out, norm_ptr, angle_ptr, eps, HAS_NORM: tl.constexpr, DIM: tl.constexpr
):
    """Rotate one head's k and store it and v; all pointers are scalars."""
    col = tl.arange(0, DIM)
    one = tl.zeros([1, 1], tl.int32)
    k = rotated(k_at + one, norm_ptr, angle_ptr, one == 0, eps, HAS_NORM, DIM)
    tl.store(k_out + one + col[None, :], k.to(k_out.dtype.element_ty))
    tl.store(v_out + col, tl.load(v_at + col))
    # The program's other threads read them.
    tl.debug_barrier()
