"""The random numbers: same bits everywhere, and of the right distribution."""

import math

import pytest
import torch

from hpcserve.kernels.sampling.noise import gumbel, mix, noise_bits

noise_triton = pytest.importorskip("hpcserve.kernels.sampling.noise_triton")
triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")


@triton.jit
def _bits_kernel(seed_ptr, position_ptr, bits_ptr, gumbel_ptr, TOKENS: tl.constexpr):
    row = tl.program_id(0)
    token = tl.arange(0, TOKENS)
    first, second = noise_triton.row_keys(tl.load(seed_ptr + row), tl.load(position_ptr + row))
    bits = noise_triton.noise_bits(first, second, token)
    tl.store(bits_ptr + row * TOKENS + token, bits.to(tl.int32, bitcast=True))
    tl.store(gumbel_ptr + row * TOKENS + token, noise_triton.gumbel(bits))


def lowbias32(x: int) -> int:
    """The published C function, in Python integers."""
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    return x ^ x >> 16


def test_mix_is_lowbias32(random):
    values = [0, 1, 2**31, 2**32 - 1, 0x80000001]
    values += torch.randint(0, 2**32, (200,), generator=random).tolist()
    tensor = torch.tensor([v - 2**32 if v >= 2**31 else v for v in values], dtype=torch.int32)
    assert [v % 2**32 for v in mix(tensor).tolist()] == [lowbias32(v) for v in values]


def test_kernel_and_reference_agree_bit_for_bit():
    seeds = torch.tensor([0, 1, -1, 2**62 + 12345, -(2**63), 2**63 - 1, 2**32])
    positions = torch.tensor([0, 5, 131071, 2**31, 7, 1, 2**40 + 3])
    bits = torch.empty(7, 256, dtype=torch.int32)
    noise = torch.empty(7, 256)
    _bits_kernel[(7,)](seeds, positions, bits, noise, TOKENS=256)
    expected = noise_bits(seeds, positions, torch.arange(256))
    assert torch.equal(bits, expected)
    torch.testing.assert_close(noise, gumbel(expected), rtol=1e-6, atol=1e-6)


def test_every_input_changes_the_bits():
    ids = torch.arange(1000)
    base = noise_bits(torch.tensor([7]), torch.tensor([3]), ids)
    for seed, position in ((8, 3), (7 + 2**32, 3), (7, 4), (-7, 3)):
        other = noise_bits(torch.tensor([seed]), torch.tensor([position]), ids)
        assert (other != base).float().mean() > 0.99
        flipped = (other ^ base)[:, :, None] >> torch.arange(32, dtype=torch.int32) & 1
        assert abs(flipped.float().mean().item() - 0.5) < 0.01
    assert len(set(base.flatten().tolist())) == 1000


def test_gumbel_distribution():
    """Kolmogorov-Smirnov against exp(-exp(-x)), at 1e-4; and the extremes are finite."""
    count = 200_000
    noise = gumbel(noise_bits(torch.tensor([42]), torch.tensor([0]), torch.arange(count)))
    ordered = noise.flatten().double().sort().values
    distribution = torch.exp(-torch.exp(-ordered))
    steps = torch.arange(1, count + 1) / count
    assert (distribution - steps).abs().max() * math.sqrt(count) < 2.23
    extremes = gumbel(torch.tensor([0, -1, 1, 2**31 - 1, -(2**31)], dtype=torch.int32))
    assert torch.isfinite(extremes).all()
    assert extremes[0] == extremes.max() and extremes[1] == extremes.min()


def test_series_meets_the_logarithm():
    """Noise falls as bits rise, across the border between the two formulas at u = 1 / 128."""
    border = 2**25
    noise = gumbel(torch.arange(border - 4096, border + 4096, 64, dtype=torch.int32))
    assert (noise.diff() <= 1e-6).all()
    assert abs(noise[63] - noise[64]) < 1e-5
