"""Kernels run in Triton's interpreter here, also on a machine with a GPU, since the tensors are on
the CPU: set before anything imports a kernel. The benchmark checks kernels on devices."""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ["TRITON_INTERPRET"] = "1"

torch.set_num_threads(1)


@pytest.fixture
def said_for_hopper(tmp_path: Path) -> Callable[..., list[Any]]:
    """Runs a script of this folder that compiles for sm_90; gives its lines of JSON."""

    def said(script: str, *words: Any) -> list[Any]:
        environment = os.environ | {
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "TRITON_INTERPRET": "0",
            "TRITON_DEFAULT_FP_FUSION": "1",
        }
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name(script)), *map(str, words)],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return [json.loads(line) for line in done.stdout.splitlines()]

    return said


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
