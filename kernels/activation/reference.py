"""Gated activations in plain torch (Shazeer, 2020, "GLU Variants Improve Transformer")."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, where [..., 2n] holds gate in its first half; returns [..., n]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up
