from __future__ import annotations

from array import array

import pytest

from hpcserve.bench.goodput import Goodput
from hpcserve.bench.metrics import figures_of
from hpcserve.bench.percentiles import distribution, spread
from hpcserve.bench.record import RequestRecord
from hpcserve.bench.request import BenchRequest
from hpcserve.bench.summary import summarize
from hpcserve.errors import UsageError


def record(index, sent, chunks, *, tokens=None, cached=-1):
    return RequestRecord(
        index,
        scheduled_s=sent,
        sent_s=sent,
        end_s=chunks[-1],
        chunk_times=array("d", chunks).tobytes(),
        prompt_tokens=10,
        output_tokens=len(chunks) if tokens is None else tokens,
        cached_tokens=cached,
    )


def requests(*groups, max_tokens=3):
    return [
        BenchRequest(prompt_token_ids=[1] * 10, max_tokens=max_tokens, group=group)
        for group in groups
    ]


RECORDS = [
    record(0, 0.0, [0.1, 0.2, 0.4], cached=5),
    record(1, 0.5, [0.8, 0.9, 1.0], cached=0),
    RequestRecord(2, scheduled_s=0.0, sent_s=0.0, end_s=2.0, error="http_503", error_text="full"),
]


def test_every_figure_of_a_small_run():
    figures = figures_of(requests("a", "b", "a"), RECORDS, goodput=Goodput({"ttft": 200}))
    assert figures["duration_s"] == 2.0
    assert figures["output_tokens"] == 6
    assert figures["output_tok_s"] == 3.0
    assert figures["total_tok_s"] == 13.0
    assert figures["requests_per_s"] == 1.0
    assert figures["errors"] == {"http_503": 1}
    assert figures["first_error"] == "http_503: full"
    assert figures["ttft_ms"]["mean"] == pytest.approx(200)
    assert figures["itl_ms"]["max"] == pytest.approx(200)
    assert figures["itl_ms"]["mean"] == pytest.approx(125)
    assert figures["tpot_ms"]["max"] == pytest.approx(150)
    assert figures["e2e_ms"]["p50"] == pytest.approx(450)
    assert figures["goodput_per_s"] == 0.5
    assert figures["cache_hit_rate"] == 0.25
    assert figures["mean_concurrency"] == pytest.approx(0.45)
    assert figures["peak_concurrency"] == 2
    assert figures["groups"]["b"]["ttft_ms"]["p50"] == pytest.approx(300)


def test_chunks_of_several_tokens():
    figures = figures_of(
        requests(None, max_tokens=7), [record(0, 0.0, [0.1, 0.2, 0.3, 0.4], tokens=7)]
    )
    assert figures["tokens_per_chunk"] == pytest.approx(1.75)
    assert figures["tpot_ms"]["p50"] == pytest.approx(50)
    assert figures["itl_ms"]["p50"] == pytest.approx(100)


def test_short_answers_are_told():
    assert figures_of(requests(None), [record(0, 0.0, [0.1, 0.2])])["num_short"] == 1


def test_nothing_answered():
    figures = figures_of(requests("a", "a", "a"), RECORDS[2:])
    assert figures["num_ok"] == 0
    assert figures["output_tok_s"] == 0.0
    assert figures["ttft_ms"] is None
    assert figures["cache_hit_rate"] is None


def test_steady_throughput_leaves_the_ends_out():
    chunks = [1.0 + 0.1 * step for step in range(91)]  # nothing in the first second of ten
    figures = figures_of(requests(None, max_tokens=91), [record(0, 0.0, chunks)])
    assert figures["output_tok_s"] == pytest.approx(9.1)
    assert figures["steady_output_tok_s"] == pytest.approx(10.0, rel=0.02)


def test_distribution_interpolates():
    found = distribution(range(101))
    assert found == {"mean": 50.0, "p50": 50.0, "p90": 90.0, "p99": 99.0, "max": 100.0}
    assert distribution([]) is None
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}


def test_goodput_judges_what_it_is_told_to():
    asked = requests("a", "a", "a")

    def kept(text):
        return figures_of(asked, RECORDS, goodput=Goodput.parse(text))["goodput_per_s"] * 2

    assert kept("ttft:100.1") == 1
    assert kept("ttft:301,itl:150") == 1
    assert kept("tpot:151") == 2
    assert kept("e2e:1000,ttft:1") == 0


@pytest.mark.parametrize("text", ["ttft", "ttft:x", "speed:3", ""])
def test_bad_goodput(text):
    with pytest.raises(UsageError, match="--goodput"):
        Goodput.parse(text)


def test_summary_over_repeats():
    summary = summarize([{"a": 1, "b": {"c": 3.0}, "d": None}, {"a": 2, "b": None, "e": "text"}])
    assert summary == {
        "a": {"median": 1.5, "min": 1.0, "max": 2.0},
        "b.c": {"median": 3.0, "min": 3.0, "max": 3.0},
    }
