"""Where a workload's random numbers come from.

Lengths and order stay the same over all repeats, so that repeats can be compared; token ids are
fresh in each, so that a prefix cache helps only where the workload itself repeats a prefix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hpcserve.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

#: Taken where nobody knows the model's vocabulary: nearly every model has as many.
DEFAULT_VOCAB_SIZE = 32000

_LENGTHS, _IDS = 0, 1


@dataclass(frozen=True)
class TokenSource:
    """shape: draws lengths, order, times.  ids: draws tokens.  low, high: their range."""

    shape: np.random.Generator
    ids: np.random.Generator
    low: int
    high: int

    @classmethod
    def make(
        cls, *, seed: int, run: int, vocab_size: int = DEFAULT_VOCAB_SIZE, nonce: int = 0
    ) -> TokenSource:
        """run: another number for each repeat, warm-up or cell of a sweep.  nonce: for a command.

        Special tokens stand at either end of a vocabulary, so ids come from its middle 80 %.
        """
        import numpy as np

        if vocab_size < 10:
            raise ConfigError(f"a vocabulary of {vocab_size} tokens is too small to draw from")
        return cls(
            shape=np.random.default_rng([seed, _LENGTHS]),
            ids=np.random.default_rng([seed, _IDS, run, nonce]),
            low=vocab_size // 10,
            high=vocab_size * 9 // 10,
        )

    def tokens(self, count: int) -> list[int]:
        drawn: list[int] = self.ids.integers(self.low, self.high, count).tolist()
        return drawn
