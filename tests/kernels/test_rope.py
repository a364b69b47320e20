import math

import pytest
import torch

from hpcserve.kernels.rope import shapes
from hpcserve.ops import rope

triton_rope = pytest.importorskip("hpcserve.kernels.rope.rope_kv_write_triton")

TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def test_cos_sin_cache_holds_cosines_then_sines():
    cache = rope.cos_sin_cache(torch.tensor([1.0, 0.25]), 5, 2.0)
    assert cache.dtype == torch.float32 and cache.shape == (5, 4)
    expected = [2 * f(3 * w) for f in (math.cos, math.sin) for w in (1.0, 0.25)]
    torch.testing.assert_close(cache[3], torch.tensor(expected))


def naive(x, position, inv_freq, weight, eps):
    """One head as complex numbers: pairs (i, i + D / 2) turn by position * inv_freq[i]."""
    x = x.double()
    if weight is not None:
        x = x / (x.pow(2).mean() + eps).sqrt() * weight.double()
    half = x.shape[0] // 2
    turned = torch.complex(x[:half], x[half:]) * torch.exp(1j * position * inv_freq.double())
    return torch.cat((turned.real, turned.imag))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", shapes.SMALL)
@pytest.mark.parametrize(
    "run", [rope.rope_kv_write, triton_rope.rope_kv_write], ids=["reference", "triton"]
)
def test_rope_kv_write(random, poisoned, run, shape, dtype):
    tokens, q_heads, kv_heads, dim, page_size, has_norm = shape
    qkv = torch.randn(tokens, q_heads + 2 * kv_heads, dim, generator=random).to(dtype)
    q, k, v = qkv.split((q_heads, kv_heads, kv_heads), dim=1)
    inv_freq = 1.0 / 100.0 ** (torch.arange(0, dim, 2) / dim)
    positions = torch.randint(0, 50, (tokens,), generator=random)
    norms = [torch.rand(dim, generator=random).to(dtype) if has_norm else None for _ in "qk"]
    slots = torch.randperm(3 * page_size * tokens, generator=random)[:tokens]
    if tokens > 1:
        slots[0] = -1
    before = torch.randn(2, 3 * tokens, page_size, kv_heads, dim, generator=random).to(dtype)
    k_cache, v_cache = before.clone()
    source = qkv.clone()
    out = run(
        q, k, v, positions, rope.cos_sin_cache(inv_freq, 64), k_cache, v_cache, slots, *norms, 1e-5
    )
    assert torch.equal(qkv, source), "the inputs were changed"
    assert out.dtype == dtype and out.shape == q.shape
    keys, values = before.clone().flatten(1, 2)
    for token, (position, slot) in enumerate(zip(positions.tolist(), slots.tolist(), strict=True)):
        turned = [naive(q[token, h], position, inv_freq, norms[0], 1e-5) for h in range(q_heads)]
        torch.testing.assert_close(
            out[token].double(), torch.stack(turned), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
        )
        if slot >= 0:
            for h in range(kv_heads):
                keys[slot, h] = naive(k[token, h], position, inv_freq, norms[1], 1e-5).to(dtype)
            values[slot] = v[token]
    torch.testing.assert_close(
        k_cache.flatten(0, 1), keys, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
    )
    assert torch.equal(v_cache.flatten(0, 1), values)
