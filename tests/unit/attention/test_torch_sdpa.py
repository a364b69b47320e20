"""The backend against attention written out row by row, over ragged shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcserve.attention import torch_sdpa
from hpcserve.attention.base import AttentionMetadata
from hpcserve.kernels.attention import reference

NUM_PAGES = {1: 4096, 16: 512, 64: 256}


def _metadata(rows, num_decodes, page_size, rng) -> AttentionMetadata:
    """rows: (tokens in the cache after the step, query tokens)."""
    seq_lens = np.array([seq for seq, _ in rows], dtype=np.int32)
    query_lens = np.array([query for _, query in rows], dtype=np.int32)
    pages_each = -(-seq_lens // page_size)
    # Behind a row's last page the table may hold anything.
    table = rng.integers(-(2**30), 2**30, (len(rows), pages_each.max() + 2)).astype(np.int32)
    ids = rng.permutation(NUM_PAGES[page_size]).astype(np.int32)
    for row, count in enumerate(pages_each):
        table[row, :count], ids = ids[:count], ids[count:]
    positions = np.concatenate([np.arange(seq - query, seq) for seq, query in rows])
    return AttentionMetadata(
        num_decodes=num_decodes,
        num_prefills=len(rows) - num_decodes,
        seq_lens=torch.from_numpy(seq_lens),
        query_lens=torch.from_numpy(query_lens),
        cu_query_lens=torch.from_numpy(np.concatenate([[0], query_lens.cumsum()]).astype(np.int32)),
        page_table=torch.from_numpy(table),
        slot_mapping=torch.zeros(len(positions), dtype=torch.int64),
        positions=torch.from_numpy(positions),
        host_seq_lens=seq_lens,
        host_query_lens=query_lens,
    )


def _check(rows, num_decodes, page_size, heads=(6, 2), head_dim=16, dtype=torch.float32, seed=0):
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    meta = _metadata(rows, num_decodes, page_size, rng)
    num_heads, num_kv_heads = heads
    shape = (NUM_PAGES[page_size], page_size, num_kv_heads, head_dim)
    k, v = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    q = torch.randn(len(meta.positions), num_heads, head_dim, generator=generator).to(dtype)
    backend = torch_sdpa.EntryClass(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        page_size=page_size,
        scale=0.3,
        dtype=dtype,
    )
    backend.plan(meta)
    got = backend.forward(q, k, v, meta)
    wanted = reference.paged_prefill(
        q, k, v, meta.page_table, meta.cu_query_lens, meta.seq_lens, 0.3
    )
    assert got.dtype == dtype
    tolerance = 2e-2 if dtype == torch.bfloat16 else 2e-5
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)
    # What others left in the pool, behind a row's end and in pages of nobody, must not matter.
    foreign = torch.ones(shape[:2], dtype=torch.bool)
    for row, length in enumerate(meta.host_seq_lens):
        at = torch.arange(int(length))
        foreign[meta.page_table[row, at // page_size].long(), at % page_size] = False
    k[foreign], v[foreign] = torch.nan, torch.nan
    torch.testing.assert_close(backend.forward(q, k, v, meta), got, rtol=0, atol=0)
    return got


@pytest.mark.parametrize("page_size", [1, 16, 64])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (4, 1)])
def test_mixed_step(page_size, heads):
    rows = [(1, 1), (64, 1), (65, 1), (300, 1), (17, 17), (300, 290), (40, 1), (128, 64)]
    _check(rows, 4, page_size, heads)


def test_bfloat16():
    _check([(5, 1), (90, 1), (33, 20)], 2, 16, dtype=torch.bfloat16)


def test_prefill_longer_than_a_block_of_queries():
    block = torch_sdpa.QUERY_BLOCK
    _check([(block * 2 + 5, block * 2 + 5), (block * 3, block + 1)], 0, 16)


row = st.integers(1, 200)


@settings(max_examples=25, deadline=None)
@given(
    decodes=st.lists(row, max_size=12),
    prefills=st.lists(st.tuples(row, st.integers(1, 200)), max_size=4),
    page_size=st.sampled_from([1, 16, 64]),
    seed=st.integers(0, 100),
)
def test_ragged_rows(decodes, prefills, page_size, seed):
    rows = [(seq, 1) for seq in decodes] + [(seq, min(seq, query)) for seq, query in prefills]
    if rows:
        _check(rows, len(decodes), page_size, seed=seed)


def test_long_row_does_not_stretch_the_others(monkeypatch):
    """The padded work of a batch stays near the sum of its lengths."""
    lengths = np.array([20] * 30 + [2000] + [25] * 30, dtype=np.int32)
    meta = _metadata([(int(n), 1) for n in lengths], len(lengths), 16, np.random.default_rng(0))
    backend = torch_sdpa.EntryClass(
        num_heads=2, num_kv_heads=2, head_dim=16, page_size=16, scale=1.0, dtype=torch.float32
    )
    backend.plan(meta)
    padded = sum(group.mask.numel() for group in backend._decodes)
    assert padded < 1.5 * (-(-lengths // 16) * 16).sum()
    monkeypatch.setitem(torch_sdpa.GROUP_BYTES, "cpu", 1)
    backend.plan(meta)
    assert [group.stop - group.start for group in backend._decodes] == [1] * len(lengths)


def test_row_alone_equals_row_in_a_batch():
    torch.manual_seed(0)
    meta = _metadata([(50, 1), (333, 1), (120, 1)], 3, 16, np.random.default_rng(1))
    k, v = torch.randn(2, NUM_PAGES[16], 16, 2, 16)
    q = torch.randn(3, 4, 16)
    backend = torch_sdpa.EntryClass(
        num_heads=4, num_kv_heads=2, head_dim=16, page_size=16, scale=0.25, dtype=torch.float32
    )
    backend.plan(meta)
    together = backend.forward(q, k, v, meta)
    for index in range(3):
        alone = AttentionMetadata(
            num_decodes=1,
            num_prefills=0,
            seq_lens=meta.seq_lens[index : index + 1],
            query_lens=meta.query_lens[:1],
            cu_query_lens=meta.cu_query_lens[:2],
            page_table=meta.page_table[index : index + 1],
            slot_mapping=meta.slot_mapping[:1],
            positions=meta.positions[index : index + 1],
            host_seq_lens=meta.host_seq_lens[index : index + 1],
            host_query_lens=meta.host_query_lens[:1],
        )
        backend.plan(alone)
        got = backend.forward(q[index : index + 1], k, v, alone)
        torch.testing.assert_close(got, together[index : index + 1], rtol=1e-6, atol=1e-6)
