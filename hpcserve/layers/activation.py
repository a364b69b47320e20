"""Activations of gated feed-forward layers."""

from __future__ import annotations

import torch
from torch import nn

from hpcserve.ops.activation import silu_and_mul


class SiluAndMul(nn.Module):
    """[..., 2 n] -> [..., n]: silu of the first half times the second."""

    def forward(self, gate_up: torch.Tensor) -> torch.Tensor:
        return silu_and_mul(gate_up)
