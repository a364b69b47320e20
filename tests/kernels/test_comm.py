"""The sum over ranks with residual add and norm: peers' memory is this process's, or shared."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hpcserve.kernels.comm import reference, shapes

kernel = pytest.importorskip("hpcserve.kernels.comm.sum_add_rms_norm_triton")

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def naive(parts, residual, weight, eps):
    total = sum(part.double() for part in parts) + residual.double()
    wide = total.to(residual.dtype).double()
    return wide / (wide.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight.double(), total


def peers_of(parts, flags, rank):
    return kernel.Peers(
        tuple(one.data_ptr() for one in parts),
        torch.tensor([one.data_ptr() for one in flags]),
        torch.zeros(kernel.MAX_ROWS, dtype=torch.int32),
        rank,
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("ranks", "rows", "size"), shapes.SMALL)
def test_reference_is_the_formula(random, ranks, rows, size, dtype):
    parts = torch.randn(ranks, rows, size, generator=random).to(dtype)
    residual, weight = torch.randn(rows, size).to(dtype), torch.randn(size).to(dtype)
    normed, total = reference.sum_add_rms_norm(parts.unbind(), residual, weight, 1e-5)
    expected = naive(parts, residual, weight, 1e-5)
    for got, want in zip((normed, total), expected, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want, rtol=TOLERANCE[dtype], atol=2e-2)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("ranks", "rows", "size"), shapes.SMALL)
def test_kernel(random, poisoned, ranks, rows, size, dtype):
    """The others have come already: their flags stand."""
    parts = list(torch.randn(ranks, rows, size, generator=random).to(dtype))
    residual = torch.randn(rows, 2 * size, generator=random).to(dtype)[:, :size]
    weight = torch.randn(size, generator=random).to(dtype)
    flags = torch.zeros(ranks, kernel.MAX_ROWS, ranks, dtype=torch.int32)
    rank = ranks - 1
    flags[rank, :rows] = 1
    flags[rank, :, rank] = 0
    peers = peers_of(parts, flags, rank)
    normed, total = kernel.sum_add_rms_norm(peers, residual, weight, 1e-5)
    wanted = reference.sum_add_rms_norm(parts, residual, weight, 1e-5)
    tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(normed, wanted[0], **tolerance)
    torch.testing.assert_close(total, wanted[1], **tolerance)
    # It told every rank, itself too, and only for its rows.
    assert flags[:, :rows, rank].eq(1).all() and flags[:, rows:].eq(0).all()
    assert peers.meetings.tolist() == [1] * rows + [0] * (kernel.MAX_ROWS - rows)


def test_numbers_of_meetings_may_wrap(random):
    parts = list(torch.randn(2, 1, 64, generator=random))
    flags = torch.zeros(2, kernel.MAX_ROWS, 2, dtype=torch.int32)
    peers = peers_of(parts, flags, 0)
    # The other one is ahead, beyond the largest int32.
    peers.meetings[0] = 2**31 - 2
    flags[0, 0, 1] = -(2**31)
    for _ in range(2):
        kernel.sum_add_rms_norm(peers, torch.zeros(1, 64), torch.ones(64), 1e-5)
    assert peers.meetings[0] == -(2**31) and flags[1, 0, 0] == -(2**31)


def _run(script: str, *numbers: int) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(Path(__file__).with_name(script)), *map(str, numbers)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(("ranks", "rows"), [(2, 3), (3, 1)])
def test_ranks_wait_for_each_other(ranks, rows):
    """Processes over shared memory, two buffers in turn, each late at random."""
    _run("sum_ranks.py", ranks, rows, 64, 8)


def test_row_parallel_layers_and_norms_of_several_ranks():
    """The layers' own way through the communicator: parts in turn, summed by the norm's kernel."""
    _run("part_ranks.py", 2, 2)


def test_no_rows():
    peers = peers_of([torch.zeros(1, 8)] * 2, torch.zeros(2, 1, 2, dtype=torch.int32), 0)
    normed, total = kernel.sum_add_rms_norm(peers, torch.zeros(0, 8), torch.ones(8), 1e-5)
    assert normed.shape == total.shape == (0, 8)
