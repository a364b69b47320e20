"""Ranks as processes that share memory: each runs the kernel in the interpreter, several times.

A program of its own, since it forks: `python sum_ranks.py RANKS ROWS SIZE ROUNDS`. Exits with 0 if
every rank found what plain torch finds, in every round.
"""

import multiprocessing
import os
import random
import sys
import time

os.environ["TRITON_INTERPRET"] = "1"

import torch

from hpcserve.kernels.comm import reference, sum_add_rms_norm_triton

EPS = 1e-6


def part_of(rank: int, turn: int, shape: tuple[int, int]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(100 * turn + rank))


def run(
    rank: int, halves: list[list[torch.Tensor]], flags: list[torch.Tensor], rounds: int
) -> None:
    size, shape = len(flags), tuple(halves[0][0].shape)
    addresses = [tuple(one.data_ptr() for one in half) for half in halves]
    meetings = torch.zeros(sum_add_rms_norm_triton.MAX_ROWS, dtype=torch.int32)
    at = torch.tensor([one.data_ptr() for one in flags])
    weight = torch.linspace(0.5, 1.5, shape[1])
    for turn in range(rounds):
        time.sleep(random.random() * 0.05)
        parts = [part_of(one, turn, shape) for one in range(size)]
        residual = part_of(size, turn, shape)
        halves[turn % 2][rank].copy_(parts[rank])
        peers = sum_add_rms_norm_triton.Peers(addresses[turn % 2], at, meetings, rank)
        found = sum_add_rms_norm_triton.sum_add_rms_norm(peers, residual, weight, EPS)
        for got, want in zip(
            found, reference.sum_add_rms_norm(parts, residual, weight, EPS), strict=True
        ):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def main() -> int:
    size, rows, width, rounds = map(int, sys.argv[1:])
    torch.set_num_threads(1)
    halves = [
        [torch.full((rows, width), torch.nan).share_memory_() for _ in range(size)]
        for _ in range(2)
    ]
    shape = (sum_add_rms_norm_triton.MAX_ROWS, size)
    flags = [torch.zeros(shape, dtype=torch.int32).share_memory_() for _ in range(size)]
    context = multiprocessing.get_context("fork")
    ranks = [
        context.Process(target=run, args=(rank, halves, flags, rounds)) for rank in range(size)
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
