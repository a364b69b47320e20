"""All-reduce of small tensors through torch's symmetric memory, where NVLink joins all GPUs.

One-shot: every rank reads all others' inputs and sums them; the least latency. Two-shot: every
rank sums its part and the others read it; fewer bytes. Both run inside CUDA graphs and use plain
loads and stores over NVLink; its multicast is never used.

A row-parallel layer makes its part of a sum in memory that the others read, one of two in turn, so
that nothing is copied. The kernel of the next norm then sums them (kernels/comm): small ones whole
on every rank, larger ones by rows, which each rank writes into the others' memory, two in turn too.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist

from hpcserve.distributed.comm_base import Communicator, PeerOutputs, PeerParts
from hpcserve.distributed.comm_torch import TorchComm
from hpcserve.envs import HPCSERVE_FUSED_BYTES, HPCSERVE_PUSHED_BYTES, EnvVar

#: Ranks -> bytes up to which one-shot beats two-shot with its two copies (measured on H200).
ONE_SHOT_BYTES = {2: 1 << 20, 3: 512 << 10, 4: 512 << 10, 5: 256 << 10, 6: 256 << 10, 8: 256 << 10}
#: Beyond, NCCL moves the bytes as fast.
TWO_SHOT_BYTES = 8 << 20
#: Ranks -> bytes up to which the next norm's kernel sums, one-shot; above, as PUSHED_BYTES says. Of 4
#: measured; what one-shot reads grows with the number of ranks.
FUSED_BYTES = {2: 1 << 20, 3: 512 << 10, 4: 256 << 10, 5: 256 << 10, 6: 128 << 10, 8: 128 << 10}
MAX_PUSHED_BYTES = 4 << 20
#: Ranks -> bytes up to which it sums by rows and pushes them; above, two-shot in place and the norm
#: by itself.  benchmarks/all_reduce_check.py measures all three.
PUSHED_BYTES = dict.fromkeys((2, 3, 4, 5, 6, 8), MAX_PUSHED_BYTES)
#: Most rows and ranks of a fused sum; kernels/comm/peers.py has as many flags and addresses.
MAX_ROWS, MAX_RANKS = 512, 8
_ALIGNMENT_BYTES = 16
#: torch's kernels for symmetric memory sum no others: float16 goes to NCCL.
_DTYPES = (torch.float32, torch.bfloat16)


class SymmMemComm(Communicator):
    """TorchComm for all but all-reduces of up to TWO_SHOT_BYTES.

    Made by all ranks of the group together; each keeps five buffers, so all calls must be on one
    stream.
    """

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        self._torch = TorchComm(group)
        self._group = group
        self._rank, self._size = dist.get_rank(group), dist.get_world_size(group)
        self._name = group.group_name
        self._one_shot_bytes = ONE_SHOT_BYTES.get(self._size, 128 << 10)
        self._fused_bytes = _limit(HPCSERVE_FUSED_BYTES, FUSED_BYTES, self._size)
        pushed_bytes = _limit(HPCSERVE_PUSHED_BYTES, PUSHED_BYTES, self._size)
        self._pushed_bytes = min(pushed_bytes, MAX_PUSHED_BYTES)
        self._device = device
        self._buffer, _ = self._shared(TWO_SHOT_BYTES)
        parts = [self._shared(TWO_SHOT_BYTES) for _ in range(2)]
        self._parts = [memory for memory, _ in parts]
        self._addresses = [addresses for _, addresses in parts]
        # A norm and a total each.
        self._outputs = [self._shared(2 * MAX_PUSHED_BYTES) for _ in range(2)]
        #: Which of the two parts, and outputs, comes next; every step begins with the first.
        self._turn = 0
        self._flags, addresses = self._shared(4 * MAX_ROWS * self._size)
        self._flags_at = torch.tensor(addresses, device=device)
        self._meetings = torch.zeros(MAX_ROWS, dtype=torch.int32, device=device)
        torch.cuda.synchronize(device)
        # No rank counts on zeros that another has not written yet.
        dist.barrier(group)

    def _shared(self, num_bytes: int) -> tuple[torch.Tensor, tuple[int, ...]]:
        """(zeros that all ranks read, the addresses of each rank's as this one sees them)."""
        import torch.distributed._symmetric_memory as symm_mem

        memory = symm_mem.empty(num_bytes, dtype=torch.uint8, device=self._device).zero_()
        handle = symm_mem.rendezvous(memory, group=self._group)
        views = [handle.get_buffer(rank, (num_bytes,), torch.uint8) for rank in range(self._size)]
        # Of whole allocations, in which the memory begins at the same place on every rank.
        start = memory.data_ptr() - views[self._rank].data_ptr()
        return memory, tuple(view.data_ptr() + start for view in views)

    # ------------------------------------------------------------ sums

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        num_bytes = x.numel() * x.element_size()
        if num_bytes == 0 or not x.is_contiguous() or x.dtype not in _DTYPES:
            return self._torch.all_reduce(x)
        if self._is_part(x):
            torch.ops.symm_mem.two_shot_all_reduce_(x.view(-1), "sum", self._name)
            return x
        if num_bytes <= self._one_shot_bytes and num_bytes % _ALIGNMENT_BYTES == 0:
            flat = torch.ops.symm_mem.one_shot_all_reduce_copy(
                _view(self._buffer, x.shape, x.dtype).view(-1), x.view(-1), "sum", self._name
            )
            return flat.view(x.shape)
        if self._fits(num_bytes):
            shared = _view(self._buffer, x.shape, x.dtype).copy_(x)
            torch.ops.symm_mem.two_shot_all_reduce_(shared.view(-1), "sum", self._name)
            return x.copy_(shared)
        return self._torch.all_reduce(x)

    def part(
        self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor | None:
        num_bytes = math.prod(shape) * dtype.itemsize
        if num_bytes == 0 or dtype not in _DTYPES or not self._fits(num_bytes):
            return None
        memory = self._parts[self._turn]
        self._turn ^= 1
        return _view(memory, shape, dtype)

    def peers(self, part: torch.Tensor) -> PeerParts | None:
        rows, num_bytes = len(part), part.numel() * part.element_size()
        if not 0 < num_bytes <= max(self._fused_bytes, self._pushed_bytes) or rows > MAX_ROWS:
            return None
        if num_bytes // rows % _ALIGNMENT_BYTES:
            return None
        if not self._is_part(part):
            memory = self.part(part.shape, part.dtype, part.device)
            if memory is None:
                return None
            memory.copy_(part)
        addresses = self._addresses[self._turn ^ 1]
        outputs = None if num_bytes <= self._fused_bytes else self._outputs_of(part)
        return PeerParts(addresses, self._flags_at, self._meetings, self._rank, outputs)

    def _outputs_of(self, part: torch.Tensor) -> PeerOutputs:
        memory, addresses = self._outputs[self._turn ^ 1]
        return PeerOutputs(_view(memory, (2, *part.shape), part.dtype), addresses)

    def settle(self) -> None:
        """Two steps that begin with the same part must not meet in it: graphs are replayed one
        after the other, whatever their number of sums was."""
        if self._turn:
            self._torch.all_reduce(torch.zeros(1, device=self._device))
            self._turn = 0

    def _fits(self, num_bytes: int) -> bool:
        return num_bytes <= TWO_SHOT_BYTES and num_bytes % (_ALIGNMENT_BYTES * self._size) == 0

    def _is_part(self, x: torch.Tensor) -> bool:
        """Whether it stands in the memory that `part` gave last."""
        return x.data_ptr() == self._parts[self._turn ^ 1].data_ptr()

    # ------------------------------------------------------------ others

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        whole_bytes = self._size * x.numel() * x.element_size()
        if x.dtype != torch.float32 or not 0 < whole_bytes <= self._one_shot_bytes:
            return self._torch.all_gather(x)
        # Each rank's numbers among the others' zeros: their sum, which takes half of NCCL's time.
        parts = x.new_zeros((self._size, *x.shape))
        parts[self._rank] = x
        return self.all_reduce(parts).flatten(0, 1)

    def all_to_all(
        self, x: torch.Tensor, sent: list[int] | None = None, taken: list[int] | None = None
    ) -> torch.Tensor:
        return self._torch.all_to_all(x, sent, taken)

    def reduce_scatter(self, x: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        return self._torch.reduce_scatter(x, rank, size)


def _limit(variable: EnvVar[int | None], measured: dict[int, int], size: int) -> int:
    """What the variable says, or else what was measured; nothing where neither was, nor for more
    ranks than the kernels take."""
    said = variable.get()
    if size > MAX_RANKS:
        return 0
    return measured.get(size, 0) if said is None else said


def _view(memory: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return memory[: math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
