"""Counter-based Gumbel noise: a pure function of (seed, position, token id).

Bits come from chained rounds of `lowbias32`, a 32-bit integer mixer found by Chris Wellons'
hash-prospector (public domain, https://github.com/skeeto/hash-prospector). A seed and a
position make two 32-bit keys; a token's bits are two more rounds over them. The Triton kernels
compute the same bits with the same constants; logarithms may differ in the last place.
"""

from __future__ import annotations

import torch

#: Multipliers of lowbias32, and an odd constant (2^32 / golden ratio) that spreads token ids.
MULTIPLY_1 = 0x7FEB352D
MULTIPLY_2 = 0x846CA68B
GOLDEN = 0x9E3779B9


def _signed(value: int) -> int:
    """The int32 of the same 32 bits; torch has no full uint32 arithmetic."""
    return value - (1 << 32) if value >= 1 << 31 else value


def mix(x: torch.Tensor) -> torch.Tensor:
    """lowbias32 of every element; int32 holds the 32 bits, products wrap."""
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * MULTIPLY_1
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = x * _signed(MULTIPLY_2)
    return x ^ ((x >> 16) & 0xFFFF)


def row_keys(seeds: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two int32 keys per row from int64 seeds [B] and int64 positions [B] (their low 32 bits)."""
    low = seeds.to(torch.int32)
    high = (seeds >> 32).to(torch.int32)
    first = mix(mix(mix(low) ^ high) ^ positions.to(torch.int32))
    return first, mix(first + _signed(GOLDEN))


def noise_bits(
    seeds: torch.Tensor, positions: torch.Tensor, token_ids: torch.Tensor
) -> torch.Tensor:
    """32 random bits (as int32) for every row [B] and token id [n] or [B, n]; returns [B, n]."""
    first, second = row_keys(seeds, positions)
    spread = token_ids.to(torch.int32) * _signed(GOLDEN)
    return mix(mix(spread ^ first[:, None]) ^ second[:, None])


def gumbel(bits: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise fp32 from 32 random bits: -log(E), E exponential.

    u = (bits + 1/2) / 2^32 and E = -log(1 - u). Small E decides who wins, so E is computed by
    its series where u < 1/128: the smallest is 2^-33, the largest noise 22.9.
    """
    u = ((bits.to(torch.int64) & 0xFFFFFFFF).float() + 0.5) * 2.0**-32
    u = u.clamp(max=1.0 - 2.0**-24)
    series = u * (1.0 + u * (0.5 + u * (1.0 / 3.0 + u * 0.25)))
    exponential = torch.where(u < 1.0 / 128.0, series, -torch.log(1.0 - u))
    return -torch.log(exponential)
