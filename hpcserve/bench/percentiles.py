"""Mean, percentiles and extremes of a list of numbers, as the reports show them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Distribution = dict[str, float]


def distribution(values: npt.ArrayLike) -> Distribution | None:
    """mean, p50, p90, p99, max; None where there are no values.

    Percentiles interpolate linearly between neighbours.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.size == 0:
        return None
    p50, p90, p99 = np.percentile(numbers, [50, 90, 99])
    return {
        "mean": float(numbers.mean()),
        "p50": float(p50),
        "p90": float(p90),
        "p99": float(p99),
        "max": float(numbers.max()),
    }


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, smallest and largest, over the repeats of a run."""
    numbers = sorted(values)
    return {"median": float(np.median(numbers)), "min": numbers[0], "max": numbers[-1]}
