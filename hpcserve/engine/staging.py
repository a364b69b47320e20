"""Small host arrays to the device without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch


def to_device(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """A tensor of `array` on `device`; on a CPU it may share the array's memory.

    On a GPU the copy goes through pinned memory, which torch keeps until the copy is done, so the
    host does not wait.
    """
    tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def pack_to_device(
    arrays: Sequence[npt.NDArray[np.int32]], device: torch.device
) -> list[torch.Tensor]:
    """int32 tensors of all `arrays`, sent in a single copy."""
    if device.type == "cpu":
        return [to_device(array, device) for array in arrays]
    packed = to_device(np.concatenate(arrays), device)
    return list(packed.split([len(array) for array in arrays]))
