"""RMSNorm, alone or fused with the residual addition before it."""

from __future__ import annotations

import torch
from torch import nn

from hpcserve.distributed.parallel_state import TensorParallel
from hpcserve.layers.parameter import load_whole, weight_parameter
from hpcserve.ops._dispatch import kernels_enabled
from hpcserve.ops.comm import push_sum_norm, sum_add_rms_norm
from hpcserve.ops.norm import add_rms_norm, rms_norm


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, computed in fp32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = weight_parameter((size,), load_whole, {None: (size,)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.weight, self.eps)

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(norm of x + residual, x + residual)."""
        return add_rms_norm(x, residual, self.weight, self.eps)

    def add_sum(
        self,
        part: torch.Tensor,
        residual: torch.Tensor,
        tp: TensorParallel,
        *,
        chained: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`add` for the sum of every rank's part, in one kernel where that is possible.

        What it returns lives until the second sum from this one.
        chained: the sum goes to the next `add_sum`, of the same shape, and nowhere else. Then it may
        have on each rank but the rows which that one adds to; the others are undefined.
        """
        peers = tp.peers(part) if kernels_enabled() else None
        if peers is None:
            return self.add(tp.all_reduce(part), residual)
        shared = (peers.addresses, peers.flags, peers.meetings, peers.rank)
        if peers.outputs is None:
            return sum_add_rms_norm(shared, residual, self.weight, self.eps)
        outputs = (peers.outputs.memory, peers.outputs.addresses)
        return push_sum_norm(shared, outputs, residual, self.weight, self.eps, whole=not chained)
