"""Streams a checkpoint into a model: every tensor finds its place, or an error names it.

It knows a model by its parameters alone: their names, and the `weight_loader` and `full_shapes`
that each carries.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from hpcserve.errors import WeightsError

_SHOWN = 4


class LoadableModel(Protocol):
    """What the loader asks of a model; see `hpcserve.models.base.CausalLM`."""

    packed_modules: Mapping[str, tuple[str, str | int | tuple[int, int] | None]]

    def named_parameters(self) -> Iterator[tuple[str, Any]]: ...

    def is_ignored(self, tensor_name: str) -> bool: ...


def load_weights(
    model: LoadableModel, files: list[Path], *, stop: threading.Event | None = None
) -> None:
    """Fill every parameter of `model` from `files`.

    stop: once it is set, nothing more is read, and what is not filled stays so.
    Raises WeightsError that names tensor and file: one is missing, left over, given twice, of the
    wrong shape, or the file is corrupt or cut off.
    """
    params = dict(model.named_parameters())
    missing = expected_tensors(params, model.packed_modules)
    seen: dict[str, Path] = {}
    for file in files:
        for name, loaded in _tensors(file):
            if stop is not None and stop.is_set():
                return
            if name in seen:
                raise WeightsError(f"{file}: tensor {name} is in {seen[name].name} as well")
            seen[name] = file
            if name not in missing:
                if not model.is_ignored(name):
                    raise WeightsError(f"{file}: tensor {name} is left over: no weight takes it")
                continue
            param_name, shard_id = missing.pop(name)
            _fill(params[param_name], shard_id, name, loaded, file)
    if missing:
        raise WeightsError(_missing_message(list(missing), files))


def expected_tensors(
    params: Mapping[str, Any], packed_modules: Mapping[str, tuple[str, Any]]
) -> dict[str, tuple[str, Any]]:
    """Name of each tensor that a checkpoint must hold -> (parameter, shard id)."""
    unpacked = {fused: part for part, fused in packed_modules.items()}
    expected: dict[str, tuple[str, Any]] = {}
    for param_name, param in params.items():
        for shard_id in param.full_shapes:
            # A fused parameter's module, such as qkv_proj, is q_proj, k_proj, v_proj on disk.
            parts = [unpacked.get((word, shard_id), word) for word in param_name.split(".")]
            expected[".".join(parts)] = (param_name, shard_id)
    return expected


def _tensors(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of one file; the data is mapped and read when it is copied from."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            for name in opened.keys():  # noqa: SIM118 (the handle is no mapping)
                yield name, opened.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{file} is corrupt or cut off ({error}); copy or download it again"
        ) from error


def _fill(param: Any, shard_id: Any, name: str, loaded: torch.Tensor, file: Path) -> None:
    expected = tuple(param.full_shapes[shard_id])
    if tuple(loaded.shape) != expected:
        raise WeightsError(
            f"{file}: tensor {name} has shape {list(loaded.shape)}, config.json asks for "
            f"{list(expected)}"
        )
    # Converted here, a copy to a GPU needs no memory there but the parameter's.
    param.weight_loader(param, loaded.to(param.dtype), shard_id)


def _missing_message(names: list[str], files: list[Path]) -> str:
    shown = ", ".join(names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    where = str(files[0]) if len(files) == 1 else f"the {len(files)} files of {files[0].parent}"
    return f"{where}: tensor {shown}{more} missing"
