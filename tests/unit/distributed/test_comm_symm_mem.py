"""What goes through symmetric memory, and what to NCCL; the kernels themselves need GPUs."""

from __future__ import annotations

import pytest
import torch

from hpcserve.distributed.comm_base import Communicator
from hpcserve.distributed.comm_symm_mem import (
    FUSED_BYTES,
    MAX_PUSHED_BYTES,
    MAX_RANKS,
    MAX_ROWS,
    PUSHED_BYTES,
    TWO_SHOT_BYTES,
    SymmMemComm,
    _limit,
)
from hpcserve.envs import HPCSERVE_FUSED_BYTES
from hpcserve.errors import ConfigError

CPU = torch.device("cpu")


class Nccl(Communicator):
    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, x])

    def all_to_all(
        self, x: torch.Tensor, sent: list[int] | None = None, taken: list[int] | None = None
    ) -> torch.Tensor:
        return x.flip(0)


@pytest.fixture
def comm() -> SymmMemComm:
    made = SymmMemComm.__new__(SymmMemComm)
    made._torch, made._device = Nccl(), CPU
    made._rank, made._size, made._turn = 1, 2, 0
    made._one_shot_bytes, made._fused_bytes, made._pushed_bytes = 1 << 10, 0, 0
    made._parts = [torch.zeros(TWO_SHOT_BYTES, dtype=torch.uint8) for _ in range(2)]
    made._addresses = [(16, 32), (48, 64)]
    outputs = [torch.zeros(2 * MAX_PUSHED_BYTES, dtype=torch.uint8) for _ in range(2)]
    made._outputs = [(outputs[0], (80, 96)), (outputs[1], (112, 128))]
    made._flags_at, made._meetings = torch.tensor([0, 0]), torch.zeros(MAX_ROWS, dtype=torch.int32)
    return made


def test_larger_sums_are_pushed_into_memory_that_takes_turns_with_the_parts(comm):
    comm._fused_bytes, comm._pushed_bytes = 1 << 10, 4 << 10
    found = []
    for rows in (8, 32, 32, 32, 33):
        part = comm.part((rows, 64), torch.bfloat16, CPU)
        found.append(comm.peers(part))
    small, *large, too_large = found
    assert small.outputs is None and small.addresses == (16, 32) and too_large is None
    assert [one.addresses for one in large] == [(48, 64), (16, 32), (48, 64)]
    assert [one.outputs.addresses for one in large] == [(112, 128), (80, 96), (112, 128)]
    for one, turn in zip(large, (1, 0, 1), strict=True):
        memory = one.outputs.memory
        assert memory.shape == (2, 32, 64) and memory.is_contiguous()
        assert memory.data_ptr() == comm._outputs[turn][0].data_ptr()
    # What no row-parallel layer made is copied first: its turn is the next as well.
    copied = comm.peers(torch.ones(32, 64, dtype=torch.bfloat16))
    assert copied.addresses == (48, 64) and copied.outputs.addresses == (112, 128)


def test_what_is_pushed_fits_its_memory_and_is_more_than_one_shot_takes():
    for size, most in PUSHED_BYTES.items():
        assert FUSED_BYTES[size] <= most <= MAX_PUSHED_BYTES <= TWO_SHOT_BYTES


def test_a_variable_moves_a_limit_but_for_more_ranks_than_the_kernels_take(monkeypatch):
    assert _limit(HPCSERVE_FUSED_BYTES, {2: 9}, 2) == 9
    assert _limit(HPCSERVE_FUSED_BYTES, {2: 9}, 7) == 0
    monkeypatch.setenv("HPCSERVE_FUSED_BYTES", str(100 << 20))
    assert _limit(HPCSERVE_FUSED_BYTES, {2: 9}, MAX_RANKS) == 100 << 20
    assert _limit(HPCSERVE_FUSED_BYTES, {2: 9}, MAX_RANKS + 1) == 0
    monkeypatch.setenv("HPCSERVE_FUSED_BYTES", "-1")
    with pytest.raises(ConfigError, match="0 or more"):
        _limit(HPCSERVE_FUSED_BYTES, {2: 9}, 2)


def test_limits_beyond_the_memory_leave_what_does_not_fit_to_nccl(comm):
    comm._fused_bytes = 100 << 20
    whole = torch.zeros(MAX_ROWS, TWO_SHOT_BYTES // MAX_ROWS // 4 + 8)
    assert comm.part(whole.shape, whole.dtype, CPU) is None and comm.peers(whole) is None
    assert comm.peers(whole[:, :-8]) is not None


def test_parts_take_turns_and_begin_anew_after_a_step(comm):
    starts = [comm.part((4, 64), torch.bfloat16, CPU).data_ptr() for _ in range(4)]
    assert starts[0] == starts[2] != starts[1] == starts[3]
    assert comm.part((1, 64), torch.float32, CPU).data_ptr() == starts[0]
    comm.settle()
    assert comm.part((1, 64), torch.float32, CPU).data_ptr() == starts[0]


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((4, 64), torch.float16),
        ((0, 64), torch.bfloat16),
        ((1, 3), torch.bfloat16),
        ((TWO_SHOT_BYTES // 64, 64), torch.bfloat16),
    ],
    ids=["no kernel for float16", "nothing", "odd size", "too large"],
)
def test_what_torch_has_no_kernel_for_goes_to_nccl(comm, shape, dtype):
    assert comm.part(shape, dtype, CPU) is None
    x = torch.ones(shape, dtype=dtype)
    assert comm.peers(x) is None
    assert torch.equal(comm.all_reduce(x), x * 2)


def test_tokens_of_other_types_are_gathered_by_nccl(comm):
    ids = torch.tensor([[1, 2]])
    assert comm.all_gather(ids).tolist() == [[1, 2], [1, 2]]


def test_tokens_of_experts_go_by_nccl(comm):
    assert comm.all_to_all(torch.arange(2)).tolist() == [1, 0]
