"""One point of a sweep: how hard the server is driven."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from hpcserve.bench.client_pool import Load
from hpcserve.bench.request import BenchRequest, chains_of
from hpcserve.errors import UsageError

_ARRIVALS = 2


@dataclass(frozen=True)
class LoadPoint:
    """concurrency: streams of a closed loop; with a rate, the most open requests; 0 is no limit.

    rate: Poisson arrivals per second, inf for all at once; None is a closed loop, or, without
    concurrency, the requests' own arrival times.
    """

    concurrency: int = 0
    rate: float | None = None

    @property
    def label(self) -> str:
        if self.rate is None:
            return f"c={self.concurrency}" if self.concurrency else "arrivals"
        rate = "all at once" if math.isinf(self.rate) else f"{self.rate:g} req/s"
        return f"{rate}, c<={self.concurrency}" if self.concurrency else rate

    def describe(self) -> dict[str, Any]:
        rate = "inf" if self.rate is not None and math.isinf(self.rate) else self.rate
        return {"label": self.label, "concurrency": self.concurrency, "request_rate": rate}

    @property
    def follows_arrivals(self) -> bool:
        return self.rate is not None or not self.concurrency

    def load(self, *, num_processes: int, timeout_s: float, keep_text: bool) -> Load:
        return Load(
            concurrency=self.concurrency,
            arrivals=self.follows_arrivals,
            timeout_s=timeout_s,
            num_processes=num_processes,
            keep_text=keep_text,
        )

    def schedule(self, requests: list[BenchRequest], seed: int) -> list[BenchRequest]:
        """The requests with their arrival times: the same seed, the same times."""
        if self.rate is None:
            return requests
        chains = chains_of(requests)
        times = poisson_times(self.rate, len(chains), seed)
        scheduled = list(requests)
        for chain, arrival_s in zip(chains, times, strict=True):
            first = chain[0]
            scheduled[first] = msgspec.structs.replace(requests[first], arrival_s=arrival_s)
        return scheduled


def poisson_times(rate: float, count: int, seed: int) -> list[float]:
    """Seconds of `count` arrivals, `rate` a second on average; the first is at 0."""
    if math.isinf(rate):
        return [0.0] * count
    gaps = np.random.default_rng([seed, _ARRIVALS]).exponential(1.0 / rate, count)
    gaps[:1] = 0.0
    times: list[float] = np.cumsum(gaps).tolist()
    return times


def points_of(
    concurrencies: list[int], rates: list[float], *, has_arrivals: bool
) -> list[LoadPoint]:
    """The sweep that the command line asks for. Raises UsageError for two lists at once."""
    if any(one < 1 for one in concurrencies) or any(not one > 0 for one in rates):
        raise UsageError("--concurrency must be at least 1, and --request-rate more than 0")
    if len(concurrencies) > 1 and rates:
        raise UsageError("sweep either --concurrency or --request-rate; the other takes one value")
    if rates:
        cap = concurrencies[0] if concurrencies else 0
        return [LoadPoint(cap, rate) for rate in rates]
    if concurrencies:
        return [LoadPoint(one) for one in concurrencies]
    return [LoadPoint()] if has_arrivals else [LoadPoint(0, math.inf)]
