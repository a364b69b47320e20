"""Ranks as processes that share memory: each runs the kernels in the interpreter, several times.

A program of its own, since it forks: `python sum_ranks.py WAY RANKS ROWS SIZE ROUNDS`. WAY: "fused",
"pushed", or "mixed", which is both in turn. Every round adds to the total of the round before, comes
late at random, and looks again at the norm of the round before. Exits with 0 if every rank found
what plain torch finds, in every round.
"""

import multiprocessing
import os
import random
import sys
import time
from dataclasses import dataclass

os.environ["TRITON_INTERPRET"] = "1"

import torch

from hpcserve.kernels.comm import push_sum_norm_triton, reference, sum_add_rms_norm_triton
from hpcserve.kernels.comm.peers import MAX_ROWS, Peers

EPS = 1e-6
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@dataclass
class Memory:
    """What all ranks share: of each turn, of each rank."""

    parts: list[list[torch.Tensor]]
    outputs: list[list[torch.Tensor]]
    flags: list[torch.Tensor]


def memory_of(size: int, shape: tuple[int, int]) -> Memory:
    def turns(*shape: int) -> list[list[torch.Tensor]]:
        return [
            [torch.full(shape, torch.nan).share_memory_() for _ in range(size)] for _ in range(2)
        ]

    # Near the largest number, so that it wraps.
    flags = torch.full((MAX_ROWS, size), 2**31 - 4, dtype=torch.int32)
    return Memory(
        turns(*shape), turns(2, *shape), [flags.clone().share_memory_() for _ in range(size)]
    )


def part_of(rank: int, turn: int, shape: tuple[int, int]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(100 * turn + rank))


class Rank:
    def __init__(self, rank: int, memory: Memory, way: str) -> None:
        self.rank, self.memory, self.way = rank, memory, way
        self.size, self.shape = len(memory.flags), tuple(memory.parts[0][0].shape)
        self.flags_at = torch.tensor([one.data_ptr() for one in memory.flags])
        self.meetings = memory.flags[rank][:, 0].clone()
        self.weight = torch.linspace(0.5, 1.5, self.shape[1])
        self.own = torch.arange(self.shape[0]) % self.size == rank

    def sum(self, turn: int, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        memory = self.memory
        at = tuple(one.data_ptr() for one in memory.parts[turn % 2])
        peers = Peers(at, self.flags_at, self.meetings, self.rank)
        if self.way == "fused" or (self.way == "mixed" and turn % 3 == 2):
            return sum_add_rms_norm_triton.sum_add_rms_norm(peers, residual, self.weight, EPS)
        outputs = push_sum_norm_triton.Outputs(
            memory.outputs[turn % 2][self.rank],
            tuple(one.data_ptr() for one in memory.outputs[turn % 2]),
        )
        whole = self.way == "mixed" or turn % 3 == 1
        return push_sum_norm_triton.push_sum_norm(peers, outputs, residual, self.weight, EPS, whole)

    def run(self, rounds: int) -> None:
        wanted_total = residual = part_of(self.size, 0, self.shape)
        before = wanted_before = torch.zeros(())
        for turn in range(rounds):
            time.sleep(random.random() * 0.05)
            parts = [part_of(one, turn, self.shape) for one in range(self.size)]
            self.memory.parts[turn % 2][self.rank].copy_(parts[self.rank])
            normed, total = self.sum(turn, residual)
            wanted, wanted_total = reference.sum_add_rms_norm(parts, wanted_total, self.weight, EPS)
            time.sleep(random.random() * 0.05)
            torch.testing.assert_close(before, wanted_before, **TOLERANCE)
            torch.testing.assert_close(normed, wanted, **TOLERANCE)
            torch.testing.assert_close(total[self.own], wanted_total[self.own], **TOLERANCE)
            if self.way != "pushed" or turn % 3 == 1:
                torch.testing.assert_close(total, wanted_total, **TOLERANCE)
            elif self.way == "pushed":
                # What is not this rank's may be anything; nobody is to read it.
                total[~self.own] = torch.nan
            residual, before, wanted_before = total, normed, wanted


def main() -> int:
    way, (size, rows, width, rounds) = sys.argv[1], map(int, sys.argv[2:])
    torch.set_num_threads(1)
    memory = memory_of(size, (rows, width))
    context = multiprocessing.get_context("fork")
    ranks = [
        context.Process(target=Rank(rank, memory, way).run, args=(rounds,)) for rank in range(size)
    ]
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
