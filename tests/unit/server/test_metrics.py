"""GET /metrics, as Prometheus reads it."""

import asyncio

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as read_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as read

from hpcserve.engine.client import ReplicaStatus
from hpcserve.errors import EngineDeadError
from hpcserve.ipc.messages import SchedulerStats
from hpcserve.server.replica_metrics import ReplicaMetrics
from hpcserve.server.request_metrics import WeightedHistogram

LATENCIES = {
    "hpcserve_time_to_first_token_seconds",
    "hpcserve_inter_token_latency_seconds",
    "hpcserve_e2e_request_latency_seconds",
    "hpcserve_request_queue_time_seconds",
}


async def scrape(served, **labels):
    """Name of a sample -> the sum over its series with these labels."""
    response = await served.http.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    found = {}
    for family in read(response.text):
        assert family.name.startswith("hpcserve_") and family.documentation
        for sample in family.samples:
            if labels.items() <= sample.labels.items():
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def test_requests_are_counted_and_timed(serve):
    async def scenario(served):
        before = await scrape(served)
        assert {f"{name}_count" for name in LATENCIES} <= before.keys()
        assert before["hpcserve_requests_total"] == 0
        await served.post("/generate", {"text": "abc"})  # a, b, c and EOS
        limited = {"text": "abc", "sampling_params": {"max_new_tokens": 2}, "stream": True}
        assert (await served.http.post("/generate", json=limited)).status_code == 200
        stopped = {"prompt": "abcdef", "stop": "cd", "max_tokens": 9}
        await served.post("/v1/completions", stopped)
        after = await scrape(served, model_name="byte-model", replica="0")
        assert after["hpcserve_requests_total"] == 3
        assert after["hpcserve_time_to_first_token_seconds_count"] == 3
        assert after["hpcserve_inter_token_latency_seconds_count"] >= 3 + 1 + 3
        assert after["hpcserve_e2e_request_latency_seconds_count"] == 3
        assert after["hpcserve_request_queue_time_seconds_sum"] == pytest.approx(3 * 0.25)
        assert after["hpcserve_request_prompt_tokens_sum"] == 3 + 3 + 6
        assert after["hpcserve_request_generation_tokens_sum"] == 4 + 2 + 4
        assert after["hpcserve_prompt_tokens_total"] == 3 + 3 + 6
        assert after["hpcserve_generation_tokens_total"] >= 10
        assert after["hpcserve_num_requests_running"] == 0
        assert (await scrape(served, outcome="stop"))["hpcserve_requests_total"] == 2
        assert (await scrape(served, outcome="length"))["hpcserve_requests_total"] == 1

    serve(scenario)


def test_what_failed_is_counted_by_how(serve, until):
    async def scenario(served):
        endless = {"text": "a", "sampling_params": {"ignore_eos": True, "max_new_tokens": 4000}}
        one = asyncio.create_task(served.post("/generate", {**endless, "rid": "one"}))
        await until(lambda: served.core.running)
        assert (await scrape(served))["hpcserve_num_requests_running"] == 1
        await served.post("/generate", {"text": "b"}, expect=503)
        await served.post("/abort_request", {"rid": "one"})
        await one
        await served.post("/generate", {}, expect=400)
        assert (await served.http.get("/nowhere")).status_code == 404
        assert (await scrape(served, outcome="abort"))["hpcserve_requests_total"] == 1
        assert (await scrape(served, outcome="error"))["hpcserve_requests_total"] == 1
        refused = {
            "503": (await scrape(served, status="503", code="queue_full")),
            "400": (await scrape(served, status="400", code="")),
            "404": (await scrape(served, status="404", code="")),
        }
        for status, found in refused.items():
            assert found == {"hpcserve_http_errors_total": 1.0}, status
        # Neither was answered whole.
        assert (await scrape(served))["hpcserve_e2e_request_latency_seconds_count"] == 0

    serve(scenario, max_queued=1, step_delay_s=0.02)


def test_a_step_counts_each_of_its_requests(serve):
    async def scenario(served):
        body = {"prompt": ["aaaa"] * 3, "max_tokens": 4, "ignore_eos": True}
        await served.post("/v1/completions", body)
        found = await scrape(served)
        assert found["hpcserve_inter_token_latency_seconds_count"] == 3 * 3

    serve(scenario, step_delay_s=0.005)


def test_many_at_once_are_the_same_as_one_by_one():
    def samples(observe):
        histogram = WeightedHistogram("x", "text", registry=None, buckets=(0.01, 0.02, 1.0))
        observe(histogram)
        return [(s.name, s.labels, s.value) for f in histogram.collect() for s in f.samples]

    def one_by_one(histogram):
        for value in (0.02, 0.02, 0.02, 0.5, 0.5, 7.0, 0.0):
            histogram.observe(value)

    def many(histogram):
        for value, count in ((0.02, 3), (0.5, 2), (7.0, 1), (0.0, 1)):
            histogram.observe_many(value, count)

    assert samples(many) == samples(one_by_one)


def test_it_needs_no_key(serve):
    async def scenario(served):
        assert (await served.http.get("/v1/models")).status_code == 401
        found = await scrape(served, status="401", code="invalid_api_key")
        assert found == {"hpcserve_http_errors_total": 1.0}

    serve(scenario, server={"api_key": "secret"})


def test_openmetrics_where_it_is_asked_for(serve):
    async def scenario(served):
        await served.post("/generate", {"text": "abc"})
        header = {"accept": "application/openmetrics-text; version=1.0.0"}
        response = await served.http.get("/metrics", headers=header)
        assert response.headers["content-type"].startswith("application/openmetrics-text")
        names = {family.name for family in read_openmetrics(response.text)}
        assert names > LATENCIES

    serve(scenario)


def test_a_dead_engine_still_has_a_past(serve):
    async def scenario(served):
        await served.post("/generate", {"text": "a" * 50}, expect=503)
        with pytest.raises(EngineDeadError):
            await served.client.stats()
        found = await scrape(served)
        assert found["hpcserve_requests_total"] == 1
        assert "hpcserve_num_requests_running" not in found

    serve(scenario, die_after_steps=3)


def test_gauges_of_each_replica():
    """Pages of the cache that nobody uses are free."""
    stats = SchedulerStats(3, 2, 10, 70, 100, 5, 200, 50, 30, 1, num_evictable_pages=60)
    replicas = [
        ReplicaStatus(0, "ready", 5, 0, 0, stats),
        ReplicaStatus(1, "dead", 0, 4, 0, None),
    ]
    families = {family.name: family for family in ReplicaMetrics("m", replicas).collect()}

    def values(name):
        return {s.labels["replica"]: s.value for s in families[name].samples}

    assert values("hpcserve_num_requests_running") == {"0": 3}
    assert values("hpcserve_num_requests_waiting") == {"0": 2}
    assert values("hpcserve_kv_cache_usage_ratio") == {"0": pytest.approx(0.3)}
    assert values("hpcserve_cache_hit_rate") == {"0": 0.25}
    assert values("hpcserve_replica_up") == {"0": 1, "1": 0}
    assert values("hpcserve_replica_restarts") == {"0": 0, "1": 4}
    assert {s.labels["model_name"] for f in families.values() for s in f.samples} == {"m"}


def test_replicas_have_series_of_their_own(with_replicas):
    async def scenario(served):
        for text in ("abcdefgh", "ijklmnop", "qrstuvwx", "yzabcdef"):
            await served.post("/generate", {"text": text})
        each = [await scrape(served, replica=str(index)) for index in (0, 1)]
        assert sum(one["hpcserve_requests_total"] for one in each) == 4
        for index, one in enumerate(each):
            load = (await served.client.replica_status())[index].load
            assert one["hpcserve_prompt_tokens_total"] == load.prompt_tokens_total
            assert one["hpcserve_requests_total"] * 8 == load.prompt_tokens_total
            assert (
                one["hpcserve_time_to_first_token_seconds_count"] == one["hpcserve_requests_total"]
            )
        assert (await scrape(served))["hpcserve_prompt_tokens_total"] == 32

    with_replicas(scenario)


def test_a_replica_that_does_not_answer_is_waited_for_shortly(with_replicas, until, monkeypatch):
    async def scenario(served):
        monkeypatch.setattr("hpcserve.server.metrics._REPLICAS_S", 0.2)
        silent = served.client.replicas[1]
        monkeypatch.setattr(silent, "send", lambda message: None)

        async def other_answers():
            assert "hpcserve_num_requests_running" not in await scrape(served, replica="1")
            return "hpcserve_num_requests_running" in await scrape(served, replica="0")

        await until(other_answers)

    with_replicas(scenario)
