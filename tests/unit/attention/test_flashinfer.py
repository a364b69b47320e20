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
