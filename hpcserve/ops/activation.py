"""Gated activations."""

from __future__ import annotations

import torch

from hpcserve.kernels.activation import reference
from hpcserve.ops._dispatch import kernel, use_kernel


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up for gate_up [..., 2n], gate first; returns [..., n]."""
    if use_kernel(gate_up):
        out: torch.Tensor = kernel("activation.silu_and_mul_triton").silu_and_mul(gate_up)
        return out
    return reference.silu_and_mul(gate_up)
