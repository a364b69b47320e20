"""The groups of a rank, with torch's part recorded: it needs the other ranks' processes."""

from __future__ import annotations

import os
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hpcserve.config.parallel import ParallelConfig
from hpcserve.distributed import process_group


@pytest.fixture
def made(monkeypatch) -> list[tuple[Any, timedelta | None]]:
    """(ranks, timeout) of every group, in the order in which they are made."""
    found: list[tuple[Any, timedelta | None]] = []
    dist = process_group.dist

    def init(*_: Any, timeout: timedelta | None = None, **__: Any) -> None:
        found.append(("all", timeout))

    def new_group(ranks: Any = None, *, timeout: timedelta | None = None, **_: Any) -> Any:
        found.append(("all" if ranks is None else tuple(ranks), timeout))
        return SimpleNamespace()

    monkeypatch.setattr(dist, "init_process_group", init)
    monkeypatch.setattr(dist, "new_group", new_group)
    monkeypatch.setattr(dist, "get_world_size", lambda group: 2)
    monkeypatch.setattr(process_group, "PrefixStore", lambda *_: None)
    # It would tell this process's environment, and so that of other tests.
    monkeypatch.setattr(process_group, "_choose_interface", lambda *_: None)
    return found


def test_every_rank_makes_the_same_groups_and_none_gives_up_early(made):
    """A rank that left one out, or made them in another order, would let the others wait for ever."""
    config = ParallelConfig(tp_size=2, dp_size=2, ep_size=4, enable_dp_attention=True)
    of_rank = []
    for rank in range(config.world_size):
        made.clear()
        store: Any = None
        process_group.join(config, rank, store, torch.device("cpu"), secret="s", timeout_s=5000.0)
        of_rank.append(list(made))
    assert of_rank == [of_rank[0]] * config.world_size
    assert {timeout for _, timeout in of_rank[0]} == {timedelta(seconds=5000)}
    assert [ranks for ranks, _ in of_rank[0]] == [
        "all", (0, 1), (2, 3), (0, 1, 2, 3), (0, 2), (1, 3)
    ]  # fmt: skip


@pytest.mark.parametrize("own", [None, "1"])
def test_multicast_is_off_unless_the_user_wants_it(made, monkeypatch, own):
    for name in process_group._NO_MULTICAST:
        monkeypatch.setenv(name, "1")
        monkeypatch.delenv(name)
    if own is not None:
        monkeypatch.setenv("NCCL_NVLS_ENABLE", own)
    config = ParallelConfig(dp_size=2, ep_size=2, enable_dp_attention=True)
    store: Any = None
    process_group.join(config, 1, store, torch.device("cuda", 1), secret="s", timeout_s=5.0)
    assert os.environ["NCCL_NVLS_ENABLE"] == (own or "0")
    assert os.environ["TORCH_SYMM_MEM_DISABLE_MULTICAST"] == "1"
