"""Float32 training weights → bf16 safetensors that transformers and hpcserve load."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from hpcserve.demo.model import TinyChat

__all__ = ["MAX_BYTES", "save_weights"]

MAX_BYTES = 8_000_000
"""What the bundled model.safetensors may weigh."""


def save_weights(model: TinyChat, folder: Path) -> Path:
    """Write ``model.safetensors`` into ``folder`` and return its path."""
    state = {
        name: tensor.detach().to("cpu", torch.bfloat16)
        for name, tensor in model.state_dict().items()
    }
    path = folder / "model.safetensors"
    save_file(state, path, metadata={"format": "pt"})
    path.chmod(0o644)
    if path.stat().st_size >= MAX_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, over the limit of {MAX_BYTES}")
    return path
