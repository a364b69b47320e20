"""Kernels run in Triton's interpreter here, also on a machine with a GPU, since the tensors are on
the CPU: set before anything imports a kernel. The benchmark checks kernels on devices."""

import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

os.environ["TRITON_INTERPRET"] = "1"

torch.set_num_threads(1)


def _poison(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype.is_floating_point:
        return tensor.fill_(torch.nan)
    return tensor.fill_(torch.iinfo(tensor.dtype).min // 3)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch.empty and torch.empty_like give NaN (or absurd integers), so that an element which a
    kernel forgets to write cannot pass."""

    def wrap(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def poisoned_make(*args: Any, **kwargs: Any) -> torch.Tensor:
            return _poison(make(*args, **kwargs))

        return poisoned_make

    monkeypatch.setattr(torch, "empty", wrap(torch.empty))
    monkeypatch.setattr(torch, "empty_like", wrap(torch.empty_like))
    yield


@pytest.fixture(autouse=True)
def interpreter_overflow() -> Iterator[None]:
    """The interpreter is numpy: wrapping integers and exp(-inf) are meant, not mistakes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=RuntimeWarning, module="triton")
        yield


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(1234)
