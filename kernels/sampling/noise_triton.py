"""Device functions of the counter-based noise; bit for bit those of noise.py."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def mix(x):
    """lowbias32 of uint32."""
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def row_keys(seed, position):
    """Two uint32 keys of one row from int64 (or blocks of) seed and position."""
    low = (seed & 0xFFFFFFFF).to(tl.uint32)
    high = ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    first = mix(mix(mix(low) ^ high) ^ (position & 0xFFFFFFFF).to(tl.uint32))
    return first, mix(first + 0x9E3779B9)


@triton.jit
def noise_bits(first, second, token):
    """32 random bits (uint32) for each int32 token id under a row's keys."""
    spread = token.to(tl.uint32) * 0x9E3779B9
    return mix(mix(spread ^ first) ^ second)


@triton.jit
def gumbel(bits):
    """Standard Gumbel noise fp32 from 32 random bits; the formula of noise.py."""
    u = (bits.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    u = tl.minimum(u, 0.99999994)
    series = u * (1.0 + u * (0.5 + u * (0.3333333333333333 + u * 0.25)))
    exponential = tl.where(u < 0.0078125, series, -tl.log(1.0 - u))
    return -tl.log(exponential)
