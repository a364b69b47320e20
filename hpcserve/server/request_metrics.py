"""How requests fared, as Prometheus histograms and counters.

With several HTTP processes the values lie in files that they share (prometheus_client's mode for
many processes), so that whichever is asked tells of all, and of those that have ended.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from hpcserve.engine.client import OpenRequest
from hpcserve.server.run import METRICS_FOLDER

#: How a request can end.
OUTCOMES = ("stop", "length", "abort", "error")

_FIRST_TOKEN_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75),
    *(1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0),
)
_BETWEEN_TOKENS_S = (
    *(0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.0125, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05),
    *(0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0),
)
_REQUEST_S = (
    *(0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0),
    *(20.0, 30.0, 45.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 3840.0),
)
_TOKENS = tuple(float(first * 10**power) for power in range(6) for first in (1, 2, 5))

# Otherwise each series has a second one that says since when it exists.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]


class WeightedHistogram(Histogram):
    """A histogram that takes the same value many times at the cost of one."""

    def observe_many(self, value: float, count: int) -> None:
        self._sum.inc(value * count)
        self._buckets[bisect_left(self._upper_bounds, value)].inc(count)


@dataclass(frozen=True)
class _Kind:
    """A histogram.  key: its name here; name: its name for Prometheus, without the prefix."""

    key: str
    name: str
    text: str
    buckets: tuple[float, ...]


_HISTOGRAMS = (
    _Kind(
        "first_token",
        "time_to_first_token_seconds",
        "From a request's arrival to its first token",
        _FIRST_TOKEN_S,
    ),
    _Kind(
        "between_tokens",
        "inter_token_latency_seconds",
        "From a token of a request to its next",
        _BETWEEN_TOKENS_S,
    ),
    _Kind(
        "queue",
        "request_queue_time_seconds",
        "From the engine's receipt to the first step",
        _REQUEST_S,
    ),
    _Kind(
        "whole",
        "e2e_request_latency_seconds",
        "From arrival to the last token, of requests that were answered whole",
        _REQUEST_S,
    ),
    _Kind("prompt_tokens", "request_prompt_tokens", "Tokens of a request's prompt", _TOKENS),
    _Kind("output_tokens", "request_generation_tokens", "Tokens generated for a request", _TOKENS),
)


@dataclass(frozen=True)
class _Replica:
    """The series of one replica.  histograms: by key."""

    histograms: dict[str, WeightedHistogram]
    outcomes: dict[str, Counter]


class RequestMetrics(Collector):
    """Observes an engine client (EngineObserver). Every series says which model and which replica.

    num_replicas: their series are there from the beginning, as zeros.
    """

    def __init__(self, model_name: str, num_replicas: int = 1) -> None:
        self.model_name = model_name
        self._registry = CollectorRegistry()
        self._folder = os.environ.get(METRICS_FOLDER)
        labels = ("model_name", "replica")
        self._histograms = {
            kind.key: WeightedHistogram(
                f"hpcserve_{kind.name}",
                kind.text,
                labels,
                buckets=kind.buckets,
                registry=self._registry,
            )
            for kind in _HISTOGRAMS
        }
        self._outcomes = Counter(
            "hpcserve_requests",
            "Requests that ended, by how",
            (*labels, "outcome"),
            registry=self._registry,
        )
        self._refused = Counter(
            "hpcserve_http_errors",
            "HTTP requests answered with an error, by status and the error's code",
            ("model_name", "status", "code"),
            registry=self._registry,
        )
        self._replicas: dict[int, _Replica] = {}
        for index in range(num_replicas):
            self._of(index)

    # ------------------------------------------------------------ what happens

    def on_first_token(self, request: OpenRequest, queued_s: float) -> None:
        series = self._of(request.replica).histograms
        series["first_token"].observe(request.first_token_s - request.arrival_s)
        series["queue"].observe(queued_s)

    def on_tokens(self, replica: int, gap_s: float, count: int) -> None:
        self._of(replica).histograms["between_tokens"].observe_many(gap_s, count)

    def on_end(self, request: OpenRequest) -> None:
        replica = self._of(request.replica)
        outcome = "error" if request.error is not None else request.finish_reason or "abort"
        replica.outcomes[outcome].inc()
        if outcome in ("stop", "length"):
            series = replica.histograms
            series["whole"].observe(request.finished_s - request.arrival_s)
            series["prompt_tokens"].observe(len(request.prompt_token_ids))
            series["output_tokens"].observe(request.num_output_tokens)

    def on_refusal(self, status: int, code: str | None) -> None:
        """An HTTP request was answered with an error."""
        self._refused.labels(self.model_name, str(status), code or "").inc()

    # ------------------------------------------------------------ what is told

    def collect(self) -> Iterator[Metric]:
        """All series, of all HTTP processes."""
        source: Collector = self._registry
        if self._folder is not None:
            source = MultiProcessCollector(None, self._folder)  # type: ignore[no-untyped-call]
        yield from source.collect()

    def _of(self, index: int) -> _Replica:
        found = self._replicas.get(index)
        if found is None:
            labels = (self.model_name, str(index))
            outcomes = {one: self._outcomes.labels(*labels, one) for one in OUTCOMES}
            histograms = {key: one.labels(*labels) for key, one in self._histograms.items()}
            found = self._replicas[index] = _Replica(histograms, outcomes)
        return found
