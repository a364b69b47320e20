import pytest
import torch

from hpcserve.kernels.kv_store import shapes
from hpcserve.ops import kv_store

triton_kv = pytest.importorskip("hpcserve.kernels.kv_store.write_kv_triton")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", shapes.SMALL)
@pytest.mark.parametrize(
    "run", [kv_store.write_kv, triton_kv.write_kv], ids=["reference", "triton"]
)
def test_write_kv(random, run, shape, dtype):
    tokens, heads, dim, page_size, pages = shape
    qkv = torch.randn(tokens, 3 * heads, dim, generator=random).to(dtype)
    k, v = qkv[:, heads : 2 * heads], qkv[:, 2 * heads :]
    slots = torch.randperm(pages * page_size, generator=random)[:tokens]
    if tokens > 1:
        slots[1] = -1
    caches = [torch.randn(pages, page_size, heads, dim, generator=random).to(dtype) for _ in "kv"]
    expected = [cache.clone() for cache in caches]
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            expected[0][slot // page_size, slot % page_size] = k[token]
            expected[1][slot // page_size, slot % page_size] = v[token]
    run(k, v, *caches, slots)
    assert torch.equal(caches[0], expected[0]) and torch.equal(caches[1], expected[1])
