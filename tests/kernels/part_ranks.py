"""Ranks as processes: row-parallel layers whose parts the next norm sums, over shared memory.

A program of its own, since it forks: `python part_ranks.py WAY RANKS ROWS`; WAY: "fused" or "pushed".
The communicator is the one for GPUs, its memory shared memory of this machine, its kernels run by
the interpreter. Exits with 0 if every rank found what one rank alone finds, in several steps.
"""

import multiprocessing
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch

from hpcserve.distributed.comm_symm_mem import MAX_ROWS, SymmMemComm
from hpcserve.distributed.parallel_state import TensorParallel
from hpcserve.layers.linear import RowParallelLinear
from hpcserve.layers.norm import RMSNorm

SIZE, LAYERS, STEPS = 64, 4, 3
PART_BYTES = 1 << 16


class Memory:
    """What all ranks share."""

    def __init__(self, size: int) -> None:
        self.parts = [[_zeros(PART_BYTES, torch.uint8) for _ in range(size)] for _ in range(2)]
        self.outputs = [[_zeros(2 * PART_BYTES, torch.uint8) for _ in range(size)] for _ in "01"]
        self.flags = [_zeros(MAX_ROWS * size, torch.int32) for _ in range(size)]


def _zeros(count: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(count, dtype=dtype).share_memory_()


class SharedMemoryComm(SymmMemComm):
    def __init__(self, memory: Memory, rank: int, way: str) -> None:
        self._rank, self._size = rank, len(memory.flags)
        self._fused_bytes = PART_BYTES if way == "fused" else 0
        self._pushed_bytes = PART_BYTES if way == "pushed" else 0
        self._parts = [turn[rank] for turn in memory.parts]
        self._addresses = [tuple(one.data_ptr() for one in turn) for turn in memory.parts]
        self._outputs = [
            (turn[rank], tuple(one.data_ptr() for one in turn)) for turn in memory.outputs
        ]
        self._turn = 0
        self._flags_at = torch.tensor([one.data_ptr() for one in memory.flags])
        self._meetings = torch.zeros(MAX_ROWS, dtype=torch.int32)


def layers_of(tp: TensorParallel) -> list[tuple[RowParallelLinear, RMSNorm]]:
    generator = torch.Generator().manual_seed(5)
    made = []
    for _ in range(LAYERS):
        linear = RowParallelLinear(SIZE, SIZE, tp, bias=True, sums="norm")
        norm = RMSNorm(SIZE, 1e-6)
        for param, shape in (
            (linear.weight, (SIZE, SIZE)),
            (linear.bias, (SIZE,)),
            (norm.weight, (SIZE,)),
        ):
            param.weight_loader(param, torch.randn(shape, generator=generator) / 8, None)
        made.append((linear, norm))
    return made


def step(tp: TensorParallel, layers: list, rows: int, number: int) -> torch.Tensor:
    x = torch.randn(rows, SIZE, generator=torch.Generator().manual_seed(number))
    residual = x
    for layer, (linear, norm) in enumerate(layers, 1):
        part = linear(x.chunk(tp.size, dim=-1)[tp.rank].contiguous())
        x, residual = norm.add_sum(part, residual, tp, chained=layer < LAYERS)
    return torch.cat([x, residual])


def run(memory: Memory, rank: int, rows: int, way: str) -> None:
    torch.set_num_threads(1)
    tp = TensorParallel(rank, len(memory.flags), SharedMemoryComm(memory, rank, way))
    alone = TensorParallel()
    with torch.inference_mode():
        layers, whole = layers_of(tp), layers_of(alone)
        for number in range(STEPS):
            found = step(tp, layers, rows + number, number)
            torch.testing.assert_close(
                found, step(alone, whole, rows + number, number), rtol=1e-4, atol=1e-5
            )


def main() -> int:
    way, (size, rows) = sys.argv[1], map(int, sys.argv[2:])
    torch.set_num_threads(1)
    memory = Memory(size)
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=run, args=(memory, rank, rows, way)) for rank in range(size)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
    return 0 if codes == [0] * size else 1


if __name__ == "__main__":
    sys.exit(main())
