"""The host side of the flashinfer backend, over a made-up flashinfer."""

import importlib
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch


class Buffers:
    """What a plan does to pinned memory: the device reads a buffer some time after it was filled.

    Events are recorded behind that reading, so to wait for one is to let the device catch up.
    """

    def __init__(self):
        self.unread = []

    def fill(self, buffer):
        assert buffer not in self.unread, "a plan was overwritten before the device had read it"
        self.unread.append(buffer)

    def event(self):
        held = SimpleNamespace(seen=[])

        def record():
            held.seen = list(self.unread)

        def synchronize():
            self.unread = [buffer for buffer in self.unread if buffer not in held.seen]

        return SimpleNamespace(record=record, synchronize=synchronize)


@pytest.fixture
def buffers():
    return Buffers()


@pytest.fixture
def backend(buffers, monkeypatch):
    fake, decode = ModuleType("flashinfer"), ModuleType("flashinfer.decode")
    fake.BatchDecodeWithPagedKVCacheWrapper = fake.BatchPrefillWithPagedKVCacheWrapper = None
    decode.fast_decode_plan = lambda wrapper, *args, **kwargs: buffers.fill(
        wrapper._pin_memory_int_workspace_buffer
    )
    monkeypatch.setitem(sys.modules, "flashinfer", fake)
    monkeypatch.setitem(sys.modules, "flashinfer.decode", decode)
    made = object.__new__(importlib.import_module("hpcserve.attention.flashinfer").FlashInfer)
    made.num_heads, made.num_kv_heads, made.head_dim, made.page_size = 8, 2, 64, 16
    made.dtype, made.scale = torch.bfloat16, 0.125
    made._graphs = {8: SimpleNamespace(), 16: SimpleNamespace()}
    made._indices = torch.zeros(4, dtype=torch.int32)
    made._pinned = ["first", "second"]
    made._turn = 0
    made._sent = [buffers.event() for _ in range(2)]
    yield made
    del sys.modules["hpcserve.attention.flashinfer"]


def test_plans_of_steps_that_run_ahead_of_the_device_are_not_overwritten(backend):
    """In a pipeline a stage may have more than two steps before it while it waits for the first."""
    for rows in (8, 16, 8, 8, 16, 8, 16):
        backend.replay_plan(np.full(rows, 100, np.int32))


def test_two_steps_under_way_wait_for_nothing(backend, buffers):
    for _ in range(2):
        backend.replay_plan(np.full(8, 100, np.int32))
    assert buffers.unread == ["second", "first"]


class Wrapper:
    """Remembers which rows it was planned for, and marks those it attends for."""

    def __init__(self, mark):
        self.mark = mark
        self.planned = []

    def plan(self, indptr, *args, **kwargs):
        self.planned.append(len(kwargs["seq_lens"]))

    def run(self, q, pool, out):
        assert self.planned[-1] in (len(q), 1)
        out.fill_(self.mark)


@pytest.mark.parametrize(("decodes", "own"), [(95, False), (96, True), (300, True), (0, False)])
def test_many_decodes_beside_a_prompt_take_the_own_kernel(backend, monkeypatch, decodes, own):
    module, calls = sys.modules["hpcserve.attention.flashinfer"], []

    def attend(q, k_cache, v_cache, table, lens, scale, *, max_seq_len, out, min_split):
        calls.append((len(q), len(table), len(lens), max_seq_len, min_split))
        out.fill_(3)

    monkeypatch.setattr(module, "paged_decode", attend)
    monkeypatch.setattr(module, "page_index", lambda *args: None)
    backend._device = torch.device("cpu")
    backend._decodes, backend._prefills = [Wrapper(1)] * 2, [Wrapper(2)] * 2
    lengths = np.arange(40, 41 + decodes, dtype=np.int32)
    queries = np.array([1] * decodes + [7], np.int32)
    meta = SimpleNamespace(
        num_decodes=decodes,
        num_prefills=1,
        num_rows=decodes + 1,
        host_seq_lens=lengths,
        host_query_lens=queries,
        seq_lens=torch.from_numpy(lengths),
        page_table=torch.zeros(decodes + 1, 40, dtype=torch.int32),
    )
    backend.plan(meta)
    out = backend.forward(torch.zeros(decodes + 7, 8, 64), None, None, meta)
    assert out[decodes:].eq(2).all()
    assert out[:decodes].eq(3 if own else 1).all()
    longest = 40 + decodes - 1
    assert calls == ([(decodes, decodes, decodes, longest, 1024)] if own else [])
    assert backend._decodes[0].planned == ([] if own or not decodes else [decodes])


@pytest.mark.parametrize(
    ("rows", "variant", "heads", "page_size", "own", "rotates"),
    [
        (1, 1, (8, 2), 16, True, True),
        (4, 1, (16, 1), 64, True, True),
        (1, 0, (8, 2), 16, False, False),
        (8, 0, (8, 2), 16, False, False),
        (200, 0, (8, 2), 16, True, False),
        (1, 1, (8, 2), 1, True, False),
        (1, 1, (34, 2), 16, True, False),
    ],
)
def test_graphs_of_few_short_rows_rotate(
    backend, monkeypatch, rows, variant, heads, page_size, own, rotates
):
    module, calls = sys.modules["hpcserve.attention.flashinfer"], []
    monkeypatch.setattr(module, "page_index", lambda *args: None)
    for name in ("paged_decode", "rope_paged_decode"):
        said = lambda *args, name=name, **more: calls.append((name, more["min_split"]))  # noqa: E731
        monkeypatch.setattr(module, name, said)
    (backend.num_heads, backend.num_kv_heads), backend.page_size = heads, page_size
    wrapper = SimpleNamespace(run=lambda q, pool: calls.append(("flashinfer", None)))
    for name in ("indptr", "indices", "last_page_len"):
        setattr(wrapper, f"_paged_kv_{name}_buf", None)
    backend._graphs = {rows: wrapper}
    table = torch.zeros(rows, 4, dtype=torch.int32)
    meta = SimpleNamespace(num_rows=rows, page_table=table, seq_lens=table[:, 0])
    backend.capture_plan(meta, variant)
    assert backend.rotates == rotates
    if rotates:
        backend.rotate_and_forward(None, None, None, meta, None)
        assert calls == [("rope_paged_decode", 64)]
        return
    backend.forward(None, None, None, meta)
    split = 1024 if rows == 200 else 64
    assert calls == ([("paged_decode", split)] if own else [("flashinfer", None)])


def test_an_eager_step_after_a_capture_does_not_rotate(backend, monkeypatch):
    backend.rotates, backend._own_split, backend._device = True, 64, torch.device("cpu")
    monkeypatch.setattr(sys.modules["hpcserve.attention.flashinfer"], "page_index", lambda *_: None)
    lengths, nothing = np.zeros(0, np.int32), torch.zeros(0, 4, dtype=torch.int32)
    meta = SimpleNamespace(num_decodes=0, num_prefills=0, num_rows=0, host_seq_lens=lengths)
    meta.page_table = meta.seq_lens = nothing
    backend.plan(meta)
    assert not backend.rotates and backend._own_split is None


@pytest.mark.parametrize(
    ("kv_heads", "rows", "longest"),
    [(32, 1, 1024), (8, 1, 1280), (8, 4, 1024), (2, 4, 1280), (1, 1, 1280)],
)
def test_how_long_a_short_row_is(backend, kv_heads, rows, longest):
    backend.num_kv_heads = kv_heads
    short = np.full(rows, longest, np.int32)
    assert backend.graph_variant(short) == 1
    assert backend.graph_variant(short + np.eye(rows, dtype=np.int32)[-1]) == 0
    assert backend.graph_variant(np.full(5, 1, np.int32)) == 0
