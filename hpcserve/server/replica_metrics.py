"""The gauges and counters of the replicas as Prometheus series, as they are at one moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hpcserve.engine.client import ReplicaStatus
from hpcserve.ipc.messages import SchedulerStats

_LABELS = ("model_name", "replica")
#: States in which a replica's core runs.
_UP = frozenset({"ready", "draining", "drained"})


def _usage(stats: SchedulerStats) -> float:
    """Pages that can be had at once, since no request uses them, count as free."""
    free = stats.num_free_pages + stats.num_evictable_pages
    return 1.0 - free / stats.num_total_pages if stats.num_total_pages else 0.0


def _hit_rate(stats: SchedulerStats) -> float:
    return stats.cached_tokens_total / max(stats.prompt_tokens_total, 1)


@dataclass(frozen=True)
class _Series:
    """name: without the prefix; of a counter, also without `_total`."""

    name: str
    text: str
    value: Callable[[SchedulerStats], float]


_GAUGES = (
    _Series("num_requests_running", "Requests in the engine's steps", lambda s: s.num_running),
    _Series("num_requests_waiting", "Requests in the engine's queue", lambda s: s.num_waiting),
    _Series("kv_cache_usage_ratio", "Part of the KV cache that running requests hold", _usage),
    _Series("kv_cache_pages", "Pages of the KV cache", lambda s: s.num_total_pages),
    _Series("cache_hit_rate", "Part of all prompt tokens whose KV was reused", _hit_rate),
)
_COUNTERS = (
    _Series("prompt_tokens", "Tokens of the admitted prompts", lambda s: s.prompt_tokens_total),
    _Series("cached_tokens", "Those whose KV was reused", lambda s: s.cached_tokens_total),
    _Series("generation_tokens", "Generated tokens", lambda s: s.output_tokens_total),
    _Series(
        "num_preemptions",
        "Requests that gave their KV back to the others, to go on later",
        lambda s: s.num_retracted_total,
    ),
    _Series("engine_steps", "Steps of the engine", lambda s: s.num_steps_total),
)


class ReplicaMetrics(Collector):
    """replicas: how each is. One that gave no statistics this time has no series of them."""

    def __init__(self, model_name: str, replicas: Sequence[ReplicaStatus]) -> None:
        self._model_name = model_name
        self._replicas = replicas

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("hpcserve_replica_up", "Whether its core runs", labels=_LABELS)
        restarts = CounterMetricFamily(
            "hpcserve_replica_restarts", "How often it was started again", labels=_LABELS
        )
        for one in self._replicas:
            up.add_metric(self._labels(one), float(one.state in _UP))
            restarts.add_metric(self._labels(one), one.num_restarts)
        yield up
        yield restarts
        for series in _GAUGES:
            yield self._filled(
                GaugeMetricFamily(f"hpcserve_{series.name}", series.text, labels=_LABELS), series
            )
        for series in _COUNTERS:
            yield self._filled(
                CounterMetricFamily(f"hpcserve_{series.name}", series.text, labels=_LABELS), series
            )

    def _labels(self, replica: ReplicaStatus) -> tuple[str, str]:
        return (self._model_name, str(replica.index))

    def _filled(
        self, family: GaugeMetricFamily | CounterMetricFamily, series: _Series
    ) -> GaugeMetricFamily | CounterMetricFamily:
        for one in self._replicas:
            if one.load is not None:
                family.add_metric(self._labels(one), float(series.value(one.load)))
        return family
