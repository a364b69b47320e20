"""The seeds of requests' random numbers."""

from __future__ import annotations

import hashlib

from hpcserve.sampling_params import SamplingParams


class SeedSource:
    """A request's own seed, or one that the engine's seed and the request's number give."""

    def __init__(self, random_seed: int) -> None:
        self._random_seed = random_seed
        self._num_drawn = 0

    def seed_for(self, params: SamplingParams) -> int:
        """From 0 to 2^63 - 1."""
        if params.seed is not None:
            return params.seed % 2**63
        self._num_drawn += 1
        text = f"{self._random_seed}/{self._num_drawn}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
