"""What goes through symmetric memory, and what to NCCL; the kernels themselves need GPUs."""

from __future__ import annotations

import pytest
import torch

from hpcserve.distributed.comm_base import Communicator
from hpcserve.distributed.comm_symm_mem import TWO_SHOT_BYTES, SymmMemComm

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
    made._one_shot_bytes, made._fused_bytes = 1 << 10, 0
    made._parts = [torch.zeros(TWO_SHOT_BYTES, dtype=torch.uint8) for _ in range(2)]
    return made


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
