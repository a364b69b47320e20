"""Distributions of prompt and output lengths."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hpcserve.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

_BISECTIONS = 80


@dataclass(frozen=True)
class LogNormal:
    """Log-normal lengths, cut (clipped) to [low, high].

    Real prompts are like this: many short ones, a long tail. Give either the median before the
    cut, or the mean after it; sigma is the standard deviation of the logarithm.
    """

    sigma: float
    low: int
    high: int
    mean: float | None = None
    median: float | None = None

    def __post_init__(self) -> None:
        if (self.mean is None) == (self.median is None):
            raise ConfigError("a log-normal length takes either a mean or a median")
        if self.sigma <= 0 or not 0 < self.low < self.high:
            raise ConfigError(f"log-normal lengths: sigma {self.sigma}, cut {self.low}-{self.high}")
        if self.mean is not None and not self.low < self.mean < self.high:
            raise ConfigError(f"the mean {self.mean} is not between {self.low} and {self.high}")

    @property
    def mu(self) -> float:
        """The mean of the logarithm, before the cut."""
        if self.median is not None:
            return math.log(self.median)
        assert self.mean is not None
        # The clipped mean grows with mu, so halving the interval finds it.
        low, high = math.log(self.low) - 5 * self.sigma, math.log(self.high) + 5 * self.sigma
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            if self._clipped_mean(middle) < self.mean:
                low = middle
            else:
                high = middle
        return (low + high) / 2

    @property
    def expected(self) -> float:
        """The mean after the cut."""
        return self._clipped_mean(self.mu)

    def draw(self, generator: np.random.Generator, count: int) -> list[int]:
        drawn = generator.lognormal(self.mu, self.sigma, count)
        lengths: list[int] = drawn.round().clip(self.low, self.high).astype(int).tolist()
        return lengths

    def _clipped_mean(self, mu: float) -> float:
        sigma = self.sigma
        below, above = (math.log(edge) - mu for edge in (self.low, self.high))
        inside = _normal_cdf(above / sigma - sigma) - _normal_cdf(below / sigma - sigma)
        return (
            self.low * _normal_cdf(below / sigma)
            + self.high * (1.0 - _normal_cdf(above / sigma))
            + math.exp(mu + sigma**2 / 2) * inside
        )


def uniform_lengths(
    generator: np.random.Generator, longest: int, range_ratio: float, count: int
) -> list[int]:
    """Uniform in [range_ratio * longest, longest]; ratio 1 gives `longest` every time."""
    if not 0.0 < range_ratio <= 1.0:
        raise ConfigError(f"range ratio {range_ratio} is not in (0, 1]")
    shortest = max(1, round(longest * range_ratio))
    lengths: list[int] = generator.integers(shortest, longest + 1, count).tolist()
    return lengths


def _normal_cdf(x: float) -> float:
    return 0.5 * (1.0 + math.erf(x / math.sqrt(2.0)))
