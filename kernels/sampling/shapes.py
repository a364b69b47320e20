"""Cases of sampling, shared by tests and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Case:
    """One batch whose rows all have these parameters; `spread` is the logits' deviation."""

    name: str
    batch: int
    vocab: int
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0
    min_p: float = 0.0
    spread: float = 3.0

    def make(self, device: str, dtype: torch.dtype, seed: int = 0) -> tuple[torch.Tensor, ...]:
        """(logits, temperature, top_k, top_p, min_p, seeds, positions), fresh for each seed."""
        random = torch.Generator(device).manual_seed(seed)
        rows = self.batch
        logits = torch.randn(rows, self.vocab, generator=random, device=device) * self.spread

        def column(value: float, kind: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.full((rows,), value, dtype=kind, device=device)

        def integers(low: int, high: int) -> torch.Tensor:
            return torch.randint(low, high, (rows,), generator=random, device=device)

        return (
            logits.to(dtype),
            column(self.temperature),
            column(self.top_k, torch.int32),
            column(self.top_p),
            column(self.min_p),
            integers(-(2**62), 2**62),
            integers(0, 1 << 17),
        )


_KINDS: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0.0},
    "plain": {"temperature": 0.8},
    "top-k": {"temperature": 0.8, "top_k": 20},
    "top-p": {"temperature": 0.8, "top_p": 0.95},
    "top-k+p": {"temperature": 0.7, "top_k": 50, "top_p": 0.9},
    "min-p": {"min_p": 0.05},
    "flat top-p": {"temperature": 0.8, "top_p": 0.95, "spread": 1e-3},
    "flat top-k+p+min-p": {"top_k": 700, "top_p": 0.6, "min_p": 0.01, "spread": 1e-3},
}


def _cases(batches: tuple[int, ...], vocab: int) -> list[Case]:
    return [
        Case(name, batch, vocab, **parameters)  # type: ignore[arg-type]
        for name, parameters in _KINDS.items()
        for batch in batches
    ]


#: Small enough for the interpreter; the tests shrink the kernels' blocks to get several of them.
SMALL = _cases((2,), 500)
FULL = _cases((1, 64, 256), 128256)
