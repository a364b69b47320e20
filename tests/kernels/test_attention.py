import numpy as np
import pytest
import torch

from hpcserve.attention.base import AttentionMetadata
from hpcserve.attention.triton import EntryClass
from hpcserve.kernels.attention import reference, shapes
from hpcserve.kernels.rope.reference import cos_sin_cache
from hpcserve.ops import paged_attention

decode_triton = pytest.importorskip("hpcserve.kernels.attention.paged_decode_triton")
prefill_triton = pytest.importorskip("hpcserve.kernels.attention.paged_prefill_triton")

# The interpreter has no bfloat16 matrix product; the benchmark checks that type on a device.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3}
IDS = ["reference", "triton"]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Several parts a row without long rows."""
    monkeypatch.setattr(decode_triton, "MIN_SPLIT", 64)


def make(case, dtype, random):
    """(q, k_cache, v_cache, page_table, cu_query_lens, seq_lens); unused table entries absurd."""
    pages = [-(-length // case.page_size) for length in case.seq_lens]
    pool = (2, sum(pages) + 2, case.page_size, case.kv_heads, case.head_dim)
    k_cache, v_cache = torch.randn(pool, generator=random).to(dtype)
    order = torch.randperm(sum(pages) + 2, generator=random).int()
    page_table = torch.full((len(pages), max(pages) + 2), -(2**30), dtype=torch.int32)
    used = 0
    for row, count in enumerate(pages):
        page_table[row, :count] = order[used : used + count]
        used += count
    # What no row owns must not leak in.
    k_cache[order[used:].long()] = torch.nan
    v_cache[order[used:].long()] = torch.nan
    bounds = torch.tensor((0, *case.query_lens)).cumsum(0).int()
    q = torch.randn(int(bounds[-1]), case.heads, case.head_dim, generator=random).to(dtype)
    return q, k_cache, v_cache, page_table, bounds, torch.tensor(case.seq_lens).int()


def naive(case, q, k_cache, v_cache, page_table, bounds, scale):
    """Query by query and head by head in float64."""
    out = torch.zeros(q.shape, dtype=torch.float64)
    group = case.heads // case.kv_heads
    for row, (length, queries) in enumerate(zip(case.seq_lens, case.query_lens, strict=True)):
        at = torch.arange(length)
        pages = page_table[row, at // case.page_size].long()
        keys = k_cache[pages, at % case.page_size].double()
        values = v_cache[pages, at % case.page_size].double()
        for index in range(queries if length else 0):
            seen = length - queries + index + 1
            token = bounds[row] + index
            for head in range(case.heads):
                scores = keys[:seen, head // group] @ q[token, head].double() * scale
                out[token, head] = torch.softmax(scores, 0) @ values[:seen, head // group]
    return out


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", shapes.DECODE_SMALL, ids=str)
@pytest.mark.parametrize("run", [paged_attention.paged_decode, decode_triton.paged_decode], ids=IDS)
def test_decode(random, poisoned, run, case, dtype):
    q, k_cache, v_cache, page_table, bounds, seq_lens = make(case, dtype, random)
    out = run(q, k_cache, v_cache, page_table, seq_lens, 0.3)
    assert out.dtype == dtype
    expected = naive(case, q, k_cache, v_cache, page_table, bounds, 0.3)
    torch.testing.assert_close(out.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("programs", [1, 4096])
@pytest.mark.parametrize("case", shapes.DECODE_SMALL[:3], ids=str)
def test_decode_that_rotates_and_writes(monkeypatch, random, poisoned, case, programs, norms):
    monkeypatch.setattr(decode_triton, "TARGET_PROGRAMS", programs)
    dim, rows = case.head_dim, len(case.seq_lens)
    q, k_cache, v_cache, page_table, _, seq_lens = make(case, torch.float32, random)
    width = case.heads + 2 * case.kv_heads
    qkv = torch.randn(rows, width, dim, generator=random)
    q, k, v = qkv.split((case.heads, case.kv_heads, case.kv_heads), 1)
    weights = torch.randn(2, dim, generator=random) if norms else (None, None)
    fresh = reference.Fresh(
        k, v, cos_sin_cache(torch.rand(dim // 2, generator=random), 700), *weights, 1e-5
    )
    # What stands where the new tokens go must not count.
    for row, length in enumerate(case.seq_lens):
        if length:
            at = page_table[row, (length - 1) // case.page_size], (length - 1) % case.page_size
            k_cache[at], v_cache[at] = torch.nan, torch.nan
    caches = [(k_cache.clone(), v_cache.clone()) for _ in range(2)]
    args = (page_table, seq_lens, 0.3)
    want = reference.rope_paged_decode(q, *caches[0], *args, fresh)
    got = decode_triton.paged_decode(q, *caches[1], *args, fresh=fresh)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(caches[1], caches[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_decode_that_writes_refuses_two_programs_for_one_kv_head(random):
    case = shapes.DECODE_SMALL[3]
    q, k_cache, v_cache, page_table, _, seq_lens = make(case, torch.float32, random)
    fresh = reference.Fresh(q, q, q)
    with pytest.raises(ValueError, match="20 q heads"):
        decode_triton.paged_decode(q, k_cache, v_cache, page_table, seq_lens, 0.3, fresh=fresh)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", shapes.PREFILL_SMALL, ids=str)
@pytest.mark.parametrize(
    "run", [paged_attention.paged_prefill, prefill_triton.paged_prefill], ids=IDS
)
def test_prefill(random, poisoned, run, case, dtype):
    q, k_cache, v_cache, page_table, bounds, seq_lens = make(case, dtype, random)
    out = run(q, k_cache, v_cache, page_table, bounds, seq_lens, 0.3, max(case.query_lens))
    assert out.dtype == dtype
    expected = naive(case, q, k_cache, v_cache, page_table, bounds, 0.3)
    torch.testing.assert_close(out.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_decode_does_not_depend_on_batch_or_grid(random, poisoned):
    """Bit for bit: alone, with others, with another bound and another number of programs."""
    case = shapes.Case((150, 9, 400), (1, 1, 1), 2, 1, 16, 16)
    q, k_cache, v_cache, page_table, _, seq_lens = make(case, torch.float32, random)
    together = decode_triton.paged_decode(q, k_cache, v_cache, page_table, seq_lens, 0.3)
    decode_triton.TARGET_PROGRAMS, before = 1, decode_triton.TARGET_PROGRAMS
    few = decode_triton.paged_decode(q, k_cache, v_cache, page_table, seq_lens, 0.3, 1 << 20)
    decode_triton.TARGET_PROGRAMS = before
    assert torch.equal(few, together)
    last = slice(2, 3)
    alone = decode_triton.paged_decode(
        q[last], k_cache, v_cache, page_table[last], seq_lens[last], 0.3, 400
    )
    assert torch.equal(alone, together[last])


def test_long_rows_have_a_bounded_number_of_parts(monkeypatch, random):
    monkeypatch.setattr(decode_triton, "MAX_SPLITS", 2)
    monkeypatch.setattr(decode_triton, "_MAX_SPLITS", decode_triton.tl.constexpr(2))
    case = shapes.Case((300, 40), (1, 1), 1, 1, 16, 16)
    q, k_cache, v_cache, page_table, bounds, seq_lens = make(case, torch.float32, random)
    out = decode_triton.paged_decode(q, k_cache, v_cache, page_table, seq_lens, 0.3)
    expected = naive(case, q, k_cache, v_cache, page_table, bounds, 0.3)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernels", [False, True], ids=IDS)
def test_backend_splits_decodes_and_prefills(monkeypatch, random, poisoned, kernels):
    monkeypatch.setattr(paged_attention, "use_kernel", lambda tensor: kernels)
    case = shapes.Case((70, 5, 40, 17), (1, 1, 30, 17), 2, 1, 16, 16)
    q, k_cache, v_cache, page_table, bounds, seq_lens = make(case, torch.float32, random)
    meta = AttentionMetadata(
        num_decodes=2,
        num_prefills=2,
        seq_lens=seq_lens,
        query_lens=bounds.diff(),
        cu_query_lens=bounds,
        page_table=page_table,
        slot_mapping=torch.empty(0),
        positions=torch.empty(0),
        host_seq_lens=np.array(case.seq_lens, dtype=np.int32),
        host_query_lens=np.array(case.query_lens, dtype=np.int32),
    )
    backend = EntryClass(
        num_heads=2, num_kv_heads=1, head_dim=16, page_size=16, scale=0.3, dtype=torch.float32
    )
    backend.plan(meta)
    out = backend.forward(q, k_cache, v_cache, meta)
    expected = naive(case, q, k_cache, v_cache, page_table, bounds, 0.3)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("heads", [(16, 1), (17, 1), (8, 4)])
def test_rotation_pays_only_where_the_kernel_takes_it(random, heads):
    case = shapes.Case((20, 3), (1, 1), *heads, 16, 16)
    q, k_cache, v_cache, page_table, _, seq_lens = make(case, torch.float32, random)
    new = torch.randn(2, heads[1], 16, generator=random)
    args = (q, k_cache, v_cache, page_table, seq_lens, 0.3)
    fresh = reference.Fresh(new, new, torch.randn(32, 16, generator=random))
    if paged_attention.rotation_pays(2, *heads, 16):
        assert decode_triton.paged_decode(*args, fresh=fresh).isfinite().all()
    else:
        with pytest.raises(ValueError, match="q heads share"):
            decode_triton.paged_decode(*args, fresh=fresh)
    assert not paged_attention.rotation_pays(5, *heads, 16)
    assert not paged_attention.rotation_pays(2, *heads, 1)
