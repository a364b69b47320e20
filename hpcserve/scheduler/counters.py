"""What a scheduler has done since its start."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Counters:
    """prompt_tokens: of requests admitted for the first time; cached_tokens of them were found."""

    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    retracted: int = 0
