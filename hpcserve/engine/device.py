"""Which device and dtype, and how many CPU threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hpcserve.config.backend import BackendConfig
from hpcserve.errors import ConfigError, UnsupportedModelError

_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def resolve_device(config: BackendConfig, index: int = 0) -> torch.device:
    """The device of `config`; GPU number `index` where it is one.

    Raises ConfigError where a GPU is asked for and torch sees none, or too few.
    """
    has_gpu = torch.cuda.is_available()
    if config.device == "cuda" and not has_gpu:
        raise ConfigError("--device cuda: torch sees no GPU here; use --device cpu or auto")
    if config.device == "cpu" or not has_gpu:
        return torch.device("cpu")
    if index >= torch.cuda.device_count():
        raise ConfigError(
            f"this node needs at least {index + 1} GPUs for its ranks, but torch sees "
            f"{torch.cuda.device_count()} (CUDA_VISIBLE_DEVICES may hide some); lower --tp, --pp or "
            "--dp, or spread them with --nnodes"
        )
    return torch.device("cuda", index)


def resolve_dtype(asked: str, checkpoint_dtype: str, device: torch.device) -> torch.dtype:
    """The dtype asked for; for `auto` the checkpoint's on a GPU, float32 on a CPU.

    Raises UnsupportedModelError for a checkpoint whose dtype is none that models run in.
    """
    name = asked
    if asked == "auto":
        name = "float32" if device.type == "cpu" else checkpoint_dtype
    if name not in _DTYPES:
        raise UnsupportedModelError(
            f"the checkpoint's dtype {name!r} is not supported; pass --dtype bfloat16"
        )
    return _DTYPES[name]


def cpu_threads(asked: int | None, sharers: int = 1) -> int:
    """Threads for torch on a CPU: this rank's share of the cores but one, at least one.

    sharers: ranks on this node.
    """
    if asked is not None:
        return asked
    return max(1, (len(os.sched_getaffinity(0)) - 1) // sharers)


@contextmanager
def default_dtype_and_device(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Within, tensors are made with `dtype` on `device` where nothing else is said."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)
