"""`--goodput ttft:200,itl:20`: how many requests per second kept all of these promises."""

from __future__ import annotations

from dataclasses import dataclass

from hpcserve.bench.timing import RequestTiming
from hpcserve.errors import UsageError

METRICS = ("ttft", "itl", "tpot", "e2e")


@dataclass(frozen=True)
class Goodput:
    """Most milliseconds per metric. `itl` judges the 99th percentile of a request's own gaps."""

    limits_ms: dict[str, float]

    @classmethod
    def parse(cls, text: str) -> Goodput:
        """Raises UsageError for what is not `metric:milliseconds,...`."""
        limits: dict[str, float] = {}
        for part in text.split(","):
            name, _, number = part.partition(":")
            try:
                limits[name.strip()] = float(number)
            except ValueError:
                raise UsageError(f"--goodput {part!r}: write it like ttft:200,itl:20") from None
        unknown = [name for name in limits if name not in METRICS]
        if unknown:
            raise UsageError(
                f"--goodput has no metric {unknown[0]!r}; choose from {', '.join(METRICS)}"
            )
        return cls(limits)

    def keeps(self, timing: RequestTiming) -> bool:
        """Whether a request kept all promises; one that lacks a measured time did not."""
        measured = {
            "ttft": timing.ttft_s,
            "itl": timing.itl_p99_s,
            "tpot": timing.tpot_s,
            "e2e": timing.e2e_s,
        }
        values = [(measured[name], limit) for name, limit in self.limits_ms.items()]
        return all(value is not None and value * 1e3 <= limit for value, limit in values)
