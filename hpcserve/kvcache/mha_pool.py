"""The keys and values of all pages, on the device."""

from __future__ import annotations

import numpy as np
import torch


class MHAPool:
    """kv: [num_layers, 2 (k, v), num_pages, page_size, num_kv_heads, head_dim].

    It starts as zeros: attention multiplies masked positions by zero, and what lies in memory
    that was never written might be NaN.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_pages: int,
        page_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (num_layers, 2, num_pages, page_size, num_kv_heads, head_dim)
        self.kv = zeros(shape, dtype, device)
        self.num_pages = num_pages
        self.page_size = page_size
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = [
            (layer[0], layer[1]) for layer in self.kv
        ]


def bytes_per_token(num_layers: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
    """Bytes that one token's keys and values take on one rank."""
    return num_layers * 2 * num_kv_heads * head_dim * dtype.itemsize


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros; on a CPU the operating system gives the memory page by page, when it is touched."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    return torch.from_numpy(np.zeros(num_bytes, dtype=np.uint8)).view(dtype).view(shape)
