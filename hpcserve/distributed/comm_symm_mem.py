"""All-reduce of small tensors through torch's symmetric memory, where NVLink joins all GPUs.

One-shot: every rank reads all others' inputs and sums them; the least latency. Two-shot: every
rank sums its part and the others read it; fewer bytes. Both run inside CUDA graphs and use plain
loads and stores over NVLink; its multicast is never used.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from hpcserve.distributed.comm_base import Communicator
from hpcserve.distributed.comm_torch import TorchComm

#: Ranks -> bytes up to which one-shot beats two-shot with its two copies (measured on H200).
ONE_SHOT_BYTES = {2: 1 << 20, 3: 512 << 10, 4: 512 << 10, 5: 256 << 10, 6: 256 << 10, 8: 256 << 10}
#: Beyond, NCCL moves the bytes as fast.
TWO_SHOT_BYTES = 8 << 20
_ALIGNMENT_BYTES = 16


class SymmMemComm(Communicator):
    """TorchComm for all but all-reduces of up to TWO_SHOT_BYTES.

    Made by all ranks of the group together; each keeps one buffer, so all calls must be on one
    stream.
    """

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        import torch.distributed._symmetric_memory as symm_mem

        self._torch = TorchComm(group)
        self._size = dist.get_world_size(group)
        self._name = group.group_name
        self._one_shot_bytes = ONE_SHOT_BYTES.get(self._size, 128 << 10)
        self._buffer = symm_mem.empty(TWO_SHOT_BYTES, dtype=torch.uint8, device=device)
        symm_mem.rendezvous(self._buffer, group=group)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        num_bytes = x.numel() * x.element_size()
        if num_bytes == 0 or not x.is_contiguous():
            return self._torch.all_reduce(x)
        if num_bytes <= self._one_shot_bytes and num_bytes % _ALIGNMENT_BYTES == 0:
            flat = torch.ops.symm_mem.one_shot_all_reduce_copy(
                self._view(x), x.view(-1), "sum", self._name
            )
            return flat.view(x.shape)
        if num_bytes <= TWO_SHOT_BYTES and num_bytes % (_ALIGNMENT_BYTES * self._size) == 0:
            shared = self._view(x)
            shared.copy_(x.view(-1))
            torch.ops.symm_mem.two_shot_all_reduce_(shared, "sum", self._name)
            return x.copy_(shared.view(x.shape))
        return self._torch.all_reduce(x)

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        return self._torch.all_gather(x)

    def reduce_scatter(self, x: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        return self._torch.reduce_scatter(x, rank, size)

    def _view(self, x: torch.Tensor) -> torch.Tensor:
        return self._buffer[: x.numel() * x.element_size()].view(x.dtype)
