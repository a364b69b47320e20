"""GET /metrics: Prometheus' text format."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

from fastapi import APIRouter, Request, Response
from prometheus_client import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from hpcserve.engine.client import ReplicaStatus
from hpcserve.errors import EngineDeadError
from hpcserve.server.context import context_of
from hpcserve.server.replica_metrics import ReplicaMetrics
from hpcserve.server.request_metrics import RequestMetrics

router = APIRouter()

#: Scrapers wait ten seconds, as a rule; a core in a long step answers after it.
_REPLICAS_S = 5.0


class _Scrape(Collector):
    """What one answer tells."""

    def __init__(self, requests: RequestMetrics, replicas: Sequence[ReplicaStatus]) -> None:
        self._parts = (ReplicaMetrics(requests.model_name, replicas), requests)

    def collect(self) -> Iterator[Metric]:
        for part in self._parts:
            yield from part.collect()


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Gauges, counters and histograms of all replicas and all HTTP processes."""
    context = context_of(request)
    try:
        replicas = await context.client.replica_status(_REPLICAS_S)
    except EngineDeadError:
        replicas = []  # what is known of requests is still told
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    scrape = _Scrape(context.metrics, replicas)
    # Of many replicas and processes this takes milliseconds, which streams need not wait for.
    data = await asyncio.to_thread(encode, scrape)
    return Response(data, headers={"content-type": content_type})
