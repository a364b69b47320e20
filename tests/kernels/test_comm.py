"""The sum over ranks with residual add and norm: peers' memory is this process's, or shared."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hpcserve.distributed import comm_symm_mem
from hpcserve.kernels.comm import reference, shapes

kernel = pytest.importorskip("hpcserve.kernels.comm.sum_add_rms_norm_triton")
push = pytest.importorskip("hpcserve.kernels.comm.push_sum_norm_triton")
peers = pytest.importorskip("hpcserve.kernels.comm.peers")

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def naive(parts, residual, weight, eps):
    total = sum(part.double() for part in parts) + residual.double()
    wide = total.to(residual.dtype).double()
    return wide / (wide.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight.double(), total


def peers_of(parts, flags, rank):
    return peers.Peers(
        tuple(one.data_ptr() for one in parts),
        torch.tensor([one.data_ptr() for one in flags]),
        torch.zeros(peers.MAX_ROWS, dtype=torch.int32),
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
    flags = torch.zeros(ranks, peers.MAX_ROWS, ranks, dtype=torch.int32)
    rank = ranks - 1
    flags[rank, :rows] = 1
    flags[rank, :, rank] = 0
    own = peers_of(parts, flags, rank)
    normed, total = kernel.sum_add_rms_norm(own, residual, weight, 1e-5)
    wanted = reference.sum_add_rms_norm(parts, residual, weight, 1e-5)
    tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(normed, wanted[0], **tolerance)
    torch.testing.assert_close(total, wanted[1], **tolerance)
    # It told every rank, itself too, and only for its rows.
    assert flags[:, :rows, rank].eq(1).all() and flags[:, rows:].eq(0).all()
    assert own.meetings.tolist() == [1] * rows + [0] * (peers.MAX_ROWS - rows)


def test_numbers_of_meetings_may_wrap(random):
    parts = list(torch.randn(2, 1, 64, generator=random))
    flags = torch.zeros(2, peers.MAX_ROWS, 2, dtype=torch.int32)
    own = peers_of(parts, flags, 0)
    # The other one is ahead, beyond the largest int32.
    own.meetings[0] = 2**31 - 2
    flags[0, 0, 1] = -(2**31)
    for _ in range(2):
        kernel.sum_add_rms_norm(own, torch.zeros(1, 64), torch.ones(64), 1e-5)
    assert own.meetings[0] == -(2**31) and flags[1, 0, 0] == -(2**31)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("ranks", "rows", "size"), shapes.SMALL + shapes.PUSHED)
def test_push(random, poisoned, ranks, rows, size, dtype, whole):
    """The others have come already, twice: this rank's rows, and no others, reach every rank."""
    parts = list(torch.randn(ranks, rows, size, generator=random).to(dtype))
    residual = torch.randn(rows, 2 * size, generator=random).to(dtype)[:, :size]
    weight = torch.randn(size, generator=random).to(dtype)
    rank = ranks - 1
    own_rows = torch.arange(rows) % ranks == rank
    flags = torch.zeros(ranks, peers.MAX_ROWS, ranks, dtype=torch.int32)
    programs = -(-rows // ranks)
    flags[rank, :programs] = 2
    flags[rank, :, rank] = 0
    memory = torch.full((ranks, 2, rows, size), torch.nan, dtype=dtype)
    own = peers_of(parts, flags, rank)
    outputs = push.Outputs(memory[rank], tuple(one.data_ptr() for one in memory))
    residual[~own_rows] = torch.nan
    normed, total = push.push_sum_norm(own, outputs, residual, weight, 1e-5, whole)
    came = torch.ones_like(flags)
    wanted = kernel.sum_add_rms_norm(peers_of(parts, came, rank), residual, weight, 1e-5)
    # The same bits as in one shot.
    assert torch.equal(total[own_rows], wanted[1][own_rows])
    for there in memory:
        assert torch.equal(there[0][own_rows], wanted[0][own_rows])
        assert there[0][~own_rows].isnan().all()
        pushed = own_rows & torch.tensor(whole)
        assert torch.equal(there[1][pushed], wanted[1][pushed])
        assert there[1][~pushed].isnan().all()
    assert normed.data_ptr() == memory[rank].data_ptr()
    assert flags[:, :programs, rank].eq(2).all() and flags[:, programs:].eq(0).all()
    assert own.meetings.tolist() == [2] * programs + [0] * (peers.MAX_ROWS - programs)


def _run(script: str, *words: object) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(Path(__file__).with_name(script)), *map(str, words)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("way", "ranks", "rows"),
    [
        ("fused", 2, 3),
        ("fused", 3, 1),
        ("pushed", 2, 3),
        ("pushed", 3, 7),
        ("pushed", 4, 2),
        ("mixed", 3, 5),
    ],
)
def test_ranks_wait_for_each_other(way, ranks, rows):
    """Processes over shared memory, two buffers in turn, each late at random; numbers wrap."""
    _run("sum_ranks.py", way, ranks, rows, 64, 8)


@pytest.mark.parametrize("way", ["fused", "pushed"])
def test_row_parallel_layers_and_norms_of_several_ranks(way):
    """The layers' own way through the communicator: parts in turn, summed by the norm's kernel."""
    _run("part_ranks.py", way, 2, 2)


def test_the_communicator_knows_what_the_kernels_take():
    assert comm_symm_mem.MAX_ROWS == peers.MAX_ROWS
    assert comm_symm_mem.MAX_RANKS == peers.MAX_RANKS


@pytest.mark.parametrize("way", ["fused", "pushed"])
def test_no_rows(way):
    own = peers_of([torch.zeros(1, 8)] * 2, torch.zeros(2, 1, 2, dtype=torch.int32), 0)
    args = (torch.zeros(0, 8), torch.ones(8), 1e-5)
    if way == "fused":
        normed, total = kernel.sum_add_rms_norm(own, *args)
    else:
        outputs = push.Outputs(torch.zeros(2, 0, 8), (0, 0))
        normed, total = push.push_sum_norm(own, outputs, *args, True)
    assert normed.shape == total.shape == (0, 8)
