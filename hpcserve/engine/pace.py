"""How fast answers are made, and how long they are, by those that ended of late."""

from __future__ import annotations

import math

from hpcserve.sampling_params import SamplingParams

#: What an answer weighs once the next has ended: some fifty of them count.
_FADING = 0.98


class Pace:
    """Seconds per token of an answer from its request's arrival on, so waiting is included."""

    def __init__(self) -> None:
        self._answers = 0.0
        self._seconds = 0.0
        self._tokens = 0.0
        self._squares = 0.0

    def add(self, seconds: float, num_tokens: int) -> None:
        """An answer of `num_tokens` has ended, `seconds` after its request came."""
        if num_tokens < 1:
            return
        self._answers = self._answers * _FADING + 1
        self._seconds = self._seconds * _FADING + seconds
        self._tokens = self._tokens * _FADING + num_tokens
        self._squares = self._squares * _FADING + num_tokens**2

    def seconds_for(self, params: SamplingParams) -> float:
        """How long such a request may take; 0 as long as nothing was measured.

        It is taken to make all tokens that it may, but no more than nearly all answers of late did
        (two standard deviations above their mean): most clients allow far more than they get. One
        that ignores EOS gets them all.
        """
        if not self._answers:
            return 0.0
        mean = self._tokens / self._answers
        usual = mean + 2 * math.sqrt(max(0.0, self._squares / self._answers - mean**2))
        asked = usual if params.max_tokens is None else params.max_tokens
        sure = asked if params.ignore_eos else params.min_tokens
        return max(sure, min(asked, usual)) * self._seconds / self._tokens
