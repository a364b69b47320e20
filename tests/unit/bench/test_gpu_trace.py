from __future__ import annotations

import gzip
import itertools
import json
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcserve.bench.gpu_trace import GpuTrace, union
from hpcserve.errors import InputError


def event(name, ts, dur, cat="kernel", ph="X"):
    return {"ph": ph, "cat": cat, "name": name, "ts": ts, "dur": dur, "args": {"stream": 7}}


EVENTS = [
    {"ph": "M", "name": "process_name", "ts": 0, "args": {"name": "python"}},
    event("aten::mm", 0, 5000, "cpu_op"),
    event("Trace", 0, 9000, "gpu_user_annotation"),
    event("gemm", 100.5, 10),
    event("gemm", 120, 30),
    event("norm", 140, 20),  # beside the second gemm
    event("norm", 145, 5),  # inside of the one before
    event("Memcpy HtoD", 160, 2.5, "gpu_memcpy"),  # right behind
    event("Memset", 199.5, 1, "gpu_memset"),
    {"ph": "i", "name": "Record Window End", "ts": 9000, "s": "g"},
]


@pytest.fixture
def write(tmp_path):
    def make(content, name="a.trace.json", compress=False):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        path = tmp_path / name
        path.write_bytes(gzip.compress(data) if compress else data)
        return path

    return make


@pytest.mark.parametrize("compress", [False, True])
def test_busy_is_when_at_least_one_runs(write, compress):
    order = list(EVENTS)
    random.Random(3).shuffle(order)
    content = {"deviceProperties": [{"id": 0, "name": "NVIDIA H200"}], "traceEvents": order}
    trace = GpuTrace.load(write(content, compress=compress))
    assert trace.device == "NVIDIA H200"
    assert trace.span_s == pytest.approx(100e-6)
    assert trace.busy_s == pytest.approx((10 + 42.5 + 1) * 1e-6)
    assert trace.busy_share == pytest.approx(0.535)
    assert trace.num_events == 6
    assert [(one.name, one.count, one.total_us, one.mean_us) for one in trace.kernels] == [
        ("gemm", 2, 40.0, 20.0),
        ("norm", 2, 25.0, 12.5),
        ("Memcpy HtoD", 1, 2.5, 2.5),
        ("Memset", 1, 1.0, 1.0),
    ]
    assert [one.share for one in trace.kernels] == [
        pytest.approx(part / 68.5) for part in (40, 25, 2.5, 1)
    ]


def test_a_list_of_events_is_a_trace_as_well(write):
    trace = GpuTrace.load(write(EVENTS))
    assert (trace.device, trace.num_events) == ("", 6)


def test_a_single_event_without_length(write):
    trace = GpuTrace.load(write([event("tick", 5, 0)]))
    assert (trace.span_s, trace.busy_share) == (0.0, 1.0)
    assert trace.kernels[0].share == 0.0


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12))))
def test_union_covers_what_the_pairs_cover(pairs):
    spans = sorted((float(start), float(start + length)) for start, length in pairs)
    found = list(union(spans))
    covered = {second for start, length in pairs for second in range(start, start + length)}
    assert sum(end - start for start, end in found) == len(covered)
    assert all(one[1] < other[0] for one, other in itertools.pairwise(found))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"# Notes\n", "no trace of torch's profiler: JSON is malformed"),
        (b"", "no trace of torch's profiler"),
        (b'{"traceEvents": [', "no trace of torch's profiler"),
        (b'\xff\xfe{"traceEvents": []}', "no trace of torch's profiler"),
        (b'{"args": ' + b"[" * 10**5 + b"]" * 10**5 + b"}", "no trace of torch's profiler"),
        ({"cells": []}, "missing required field `traceEvents`"),
        ({"traceEvents": [{"ts": "soon"}]}, "no trace of torch's profiler: Expected `float`"),
        ([1, 2], "no trace of torch's profiler"),
        ({"traceEvents": EVENTS[:3]}, "has 3 events and none of a GPU"),
        (gzip.compress(json.dumps(EVENTS).encode())[:-9], "broken gzip file"),
        (b"\x1f\x8b no gzip", "broken gzip file"),
    ],
)
def test_what_is_no_trace_is_told_in_a_line(write, content, words):
    with pytest.raises(InputError) as raised:
        GpuTrace.load(write(content))
    text = str(raised.value)
    assert words in text and "a.trace.json" in text and "\n" not in text


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"cannot read the trace .*No such file"):
        GpuTrace.load(tmp_path / "none")


def test_what_torch_writes_on_a_cpu_has_no_gpu(tmp_path):
    """Its own file is understood, up to the events that a CPU does not have."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        torch.ones(4, 4).sum()
    path = tmp_path / "cpu.json.gz"
    profile.export_chrome_trace(str(path))
    with pytest.raises(InputError, match=r"has \d+ events and none of a GPU"):
        GpuTrace.load(path)
