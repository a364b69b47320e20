"""Which implementation runs: a Triton kernel on CUDA tensors, the plain torch reference elsewhere.

The ops are plain Python functions, not torch.library operators: they cost one branch and one
cached look-up a call, while an operator's dispatch costs several microseconds on the host; the
engine captures CUDA graphs and does not trace.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from hpcserve.envs import HPCSERVE_DISABLE_KERNELS


@cache
def kernels_enabled() -> bool:
    """Whether Triton is installed and HPCSERVE_DISABLE_KERNELS is not set; read once."""
    return find_spec("triton") is not None and not HPCSERVE_DISABLE_KERNELS.get()


def use_kernel(tensor: torch.Tensor) -> bool:
    return tensor.is_cuda and kernels_enabled()


@cache
def kernel(path: str) -> Any:
    """The module hpcserve.kernels.<path>, imported on first use since Triton is slow to import."""
    return import_module(f"hpcserve.kernels.{path}")
