"""What the GPUs of this process have used, where NVIDIA's library tells."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any


class EnergyMeter:
    """Joules of the first `num_gpus` visible GPUs since it was made: those that the engine takes.

    Without NVML, on GPUs without a counter of energy, and where some of the GPUs are in other
    nodes, it knows nothing: None.
    """

    def __init__(self, num_gpus: int, environ: Mapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        self._library: Any = None
        visible: list[Any] = []
        if num_gpus:
            self._library, visible = _visible_devices(environ.get("CUDA_VISIBLE_DEVICES"))
        self._devices = visible[:num_gpus] if len(visible) >= num_gpus else []
        self._start_mj = self._millijoules()

    def joules(self) -> float | None:
        now_mj = self._millijoules()
        if now_mj is None or self._start_mj is None:
            return None
        return (now_mj - self._start_mj) / 1000.0

    def _millijoules(self) -> int | None:
        if not self._devices:
            return None
        read = self._library.nvmlDeviceGetTotalEnergyConsumption
        try:
            return sum(int(read(device)) for device in self._devices)
        except self._library.NVMLError:
            return None


def _visible_devices(visible: str | None) -> tuple[Any, list[Any]]:
    try:
        import pynvml
    except ImportError:
        return None, []
    try:
        pynvml.nvmlInit()
        if visible is None:
            numbers = range(pynvml.nvmlDeviceGetCount())
            return pynvml, [pynvml.nvmlDeviceGetHandleByIndex(number) for number in numbers]
        names = [name.strip() for name in visible.split(",") if name.strip()]
        return pynvml, [_by_name(pynvml, name) for name in names]
    except pynvml.NVMLError:
        return None, []


def _by_name(library: Any, name: str) -> Any:
    if name.isdigit():
        return library.nvmlDeviceGetHandleByIndex(int(name))
    return library.nvmlDeviceGetHandleByUUID(name)
