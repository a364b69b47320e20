"""A link that loses a part is named by rank, node and interface."""

import pytest
import torch

from hpcserve.distributed import link_check
from hpcserve.errors import EngineStartError

NAMES = ["rank 4 on a (ib0)", "rank 5 on b (ib0)", "rank 6 on c (eth1)"]


def test_the_rank_whose_part_is_missing_is_named(monkeypatch):
    def lose_the_last(parts: torch.Tensor) -> None:
        parts += torch.tensor([5, 0, 0])

    monkeypatch.setattr(link_check.dist, "all_reduce", lose_the_last)
    with pytest.raises(EngineStartError, match=r"the part of rank 6 on c \(eth1\) did not arrive"):
        link_check._check_sum((4, 5, 6), 1, torch.device("cpu"), NAMES)


def test_a_right_sum_passes(monkeypatch):
    monkeypatch.setattr(
        link_check.dist, "all_reduce", lambda parts: parts.add_(torch.tensor([5, 0, 7]))
    )
    link_check._check_sum((4, 5, 6), 1, torch.device("cpu"), NAMES)
