"""How many distinct experts steps hit: what a step of few tokens must read depends on it."""

from __future__ import annotations

import json
from pathlib import Path

import torch


class ExpertHits:
    """Counts on the device, so that it works inside CUDA graphs; for measurements only."""

    def __init__(self, num_experts: int) -> None:
        self._num_experts = num_experts
        # Tokens of a step -> int64[2]: experts hit, and how often that was counted.
        self._tallies: dict[int, torch.Tensor] = {}

    def count(self, ids: torch.Tensor) -> None:
        """ids: int [num_tokens, k], the experts that one layer's tokens chose in one step; -1: none.

        The first call for a number of tokens must not be inside a graph's capture.
        """
        tally = self._tallies.get(len(ids))
        if tally is None:
            tally = torch.zeros(2, dtype=torch.int64, device=ids.device)
            self._tallies[len(ids)] = tally
        # The last place takes what is no expert.
        hit = torch.zeros(self._num_experts + 1, dtype=torch.int64, device=ids.device)
        hit.scatter_(0, ids.flatten().long() % (self._num_experts + 1), 1)
        tally[0] += hit[:-1].sum()
        tally[1] += 1

    @torch.inference_mode()  # in which the steps made what is changed here
    def reset(self) -> None:
        """Forget what warming up counted."""
        for tally in self._tallies.values():
            tally.zero_()

    def means(self) -> dict[int, float]:
        """Tokens of a step -> distinct experts of a layer, the mean over layers and steps."""
        found = {tokens: tally.tolist() for tokens, tally in sorted(self._tallies.items())}
        return {tokens: hit / times for tokens, (hit, times) in found.items() if times}

    def write(self, path: Path) -> None:
        """`means` as JSON."""
        path.write_text(json.dumps(self.means()) + "\n", encoding="utf-8")
