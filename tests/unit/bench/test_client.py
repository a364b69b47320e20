from __future__ import annotations

import itertools
import time

import pytest

from hpcserve.bench.client_pool import Load, run_load, split
from hpcserve.bench.completion import RequestStyle
from hpcserve.bench.connection import Target
from hpcserve.bench.load_point import LoadPoint, points_of, poisson_times
from hpcserve.bench.metrics import figures_of
from hpcserve.bench.request import BenchRequest
from hpcserve.errors import EngineError, UsageError

STYLE = RequestStyle(model="null")
#: Sleeps of a loaded machine come late, never early.
LATE_MS = 25.0


def requests(count, max_tokens=4, **more):
    return [
        BenchRequest(prompt_token_ids=[1, 2, 3], max_tokens=max_tokens, **more)
        for _ in range(count)
    ]


def closed(concurrency, **more):
    return Load(concurrency, arrivals=False, **more)


def test_known_delays_are_measured(null_server):
    _, url = null_server(ttft_s=0.1, itl_s=0.02)
    asked = requests(4, max_tokens=11)
    figures = figures_of(asked, run_load(url, STYLE, asked, closed(4)).records)
    assert figures["num_ok"] == 4
    assert figures["output_tokens"] == 44
    assert figures["prompt_tokens"] == 12
    assert 100 <= figures["ttft_ms"]["p50"] <= 100 + LATE_MS
    assert 19 <= figures["itl_ms"]["p50"] <= 20 + LATE_MS
    assert 20 <= figures["tpot_ms"]["p50"] <= 20 + LATE_MS
    assert 300 <= figures["e2e_ms"]["p50"] <= 300 + 10 * LATE_MS
    assert figures["tokens_per_chunk"] == 1.0
    assert figures["num_short"] == 0


def test_without_streaming_only_the_end_is_known(null_server):
    server, url = null_server(ttft_s=0.05)
    asked = requests(3)
    style = RequestStyle(model="null", stream=False, temperature=0.5, extra_body={"min_p": 0.1})
    figures = figures_of(asked, run_load(url, style, asked, closed(3)).records)
    assert figures["ttft_ms"] is None
    assert figures["itl_ms"] is None
    assert figures["e2e_ms"]["p50"] >= 50
    assert figures["output_tokens"] == 12
    body = server.seen[0]
    assert body["prompt"] == [1, 2, 3]
    assert body["ignore_eos"] is True
    assert (body["temperature"], body["min_p"], body["stream"]) == (0.5, 0.1, False)


def test_closed_loop_holds_its_concurrency(null_server):
    server, url = null_server(ttft_s=0.02, itl_s=0.005)
    asked = requests(60, max_tokens=3)
    result = run_load(url, STYLE, asked, closed(10, num_processes=2))
    figures = figures_of(asked, result.records)
    assert server.peak == figures["peak_concurrency"] == 10
    assert figures["mean_concurrency"] > 8.0
    assert [one.index for one in result.records] == list(range(60))
    assert len(result.cpu_shares) == 2


def test_refusals_and_broken_streams_are_counted(null_server):
    _, url = null_server(refuse_every=3)
    asked = requests(9)
    figures = figures_of(asked, run_load(url, STYLE, asked, closed(1)).records)
    assert figures["errors"] == {"http_503": 3}
    assert (figures["num_ok"], figures["num_errors"]) == (6, 3)
    assert figures["output_tokens"] == 24
    assert "the queue is full" in figures["first_error"]
    _, url = null_server(break_every=2)
    figures = figures_of(asked, run_load(url, STYLE, asked, closed(1)).records)
    assert figures["errors"] == {"broken_stream": 4}
    assert figures["num_ok"] == 5


def test_a_request_that_takes_too_long_is_an_error(null_server):
    _, url = null_server(ttft_s=5.0)
    asked = requests(2)
    result = run_load(url, STYLE, asked, closed(2, timeout_s=0.2))
    assert [one.error for one in result.records] == ["timeout", "timeout"]


def test_nobody_listens():
    with pytest.raises(
        EngineError, match=r"no server answers at http://127\.0\.0\.1:9 .*--base-url"
    ):
        run_load("http://127.0.0.1:9", STYLE, requests(1), closed(1))


def test_arrivals_are_followed(null_server):
    server, url = null_server(ttft_s=0.2)
    point = LoadPoint(rate=50.0)
    asked = point.schedule(requests(20, max_tokens=1), seed=4)
    load = point.load(num_processes=2, timeout_s=60.0, keep_text=False)
    records = run_load(url, STYLE, asked, load).records
    for record, request in zip(records, asked, strict=True):
        assert record.scheduled_s == pytest.approx(request.arrival_s)
        assert record.sent_s >= request.arrival_s - 0.002
    assert server.peak > 2


def test_a_cap_bounds_open_requests(null_server):
    server, url = null_server(ttft_s=0.02)
    point = LoadPoint(concurrency=3, rate=float("inf"))
    asked = point.schedule(requests(12, max_tokens=1), seed=0)
    load = point.load(num_processes=1, timeout_s=60.0, keep_text=False)
    assert all(one.ok for one in run_load(url, STYLE, asked, load).records)
    assert server.peak == 3


def test_turns_of_a_chat_wait_for_each_other(null_server):
    server, url = null_server(ttft_s=0.03)
    asked = [
        BenchRequest(prompt_token_ids=[turn + 1], max_tokens=1, chat=chat, think_s=0.05 * turn)
        for chat in range(4)
        for turn in range(2)
    ]
    records = run_load(url, STYLE, asked, closed(4, num_processes=2)).records
    for first, second in zip(records[::2], records[1::2], strict=True):
        assert second.sent_s >= first.end_s + 0.049
    assert server.peak <= 4


def test_poisson_times_are_seeded_and_have_their_rate():
    times = poisson_times(20.0, 4000, seed=1)
    assert times == poisson_times(20.0, 4000, seed=1)
    assert times != poisson_times(20.0, 4000, seed=2)
    assert times[0] == 0.0
    assert times == sorted(times)
    assert 4000 / times[-1] == pytest.approx(20.0, rel=0.06)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert deviation == pytest.approx(mean, rel=0.1)  # as exponential gaps have it


def test_points_of_a_sweep():
    assert points_of([1, 8], [], has_arrivals=False) == [LoadPoint(1), LoadPoint(8)]
    assert points_of([8], [2.0, 4.0], has_arrivals=False) == [LoadPoint(8, 2.0), LoadPoint(8, 4.0)]
    assert points_of([], [], has_arrivals=True) == [LoadPoint()]
    assert points_of([], [], has_arrivals=False)[0].label == "all at once"
    with pytest.raises(UsageError, match="sweep either"):
        points_of([1, 2], [3.0], has_arrivals=False)
    with pytest.raises(UsageError, match="at least 1"):
        points_of([0], [], has_arrivals=False)


@pytest.mark.parametrize(("streams", "processes"), [(7, 3), (2, 6), (256, 6), (1, 4)])
def test_streams_and_requests_are_shared_out(streams, processes):
    asked = requests(100)
    orders = split("http://x", STYLE, asked, closed(streams, num_processes=processes))
    assert len(orders) == min(streams, processes)
    # More streams than requests would stay idle.
    assert sum(order.concurrency for order in orders) == streams
    assert sorted(index for order in orders for index in order.indices) == list(range(100))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://localhost:80/v1/", Target("localhost", 80)),
        ("localhost:31000", Target("localhost", 31000)),
        ("https://example.org/llm/v1", Target("example.org", 443, True, "/llm")),
        ("http://[::1]:5", Target("::1", 5)),
    ],
)
def test_urls(url, expected):
    assert Target.parse(url) == expected
    assert Target.parse(expected.url) == expected


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://x:port"])
def test_bad_urls(url):
    with pytest.raises(UsageError):
        Target.parse(url)


def test_the_self_test_counts_every_chunk():
    from hpcserve.bench.self_test import self_test

    begin = time.monotonic()
    result = self_test(streams=16, tokens=500, num_servers=2, num_processes=1)
    assert result["chunks"] == 8000
    assert result["errors"] == 0
    assert 0 < result["chunks_per_s"] < 8000 / 0.01
    assert result["chunks_per_cpu_s"] > 10_000
    assert time.monotonic() - begin < 30
