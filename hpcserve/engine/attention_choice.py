"""Which attention backend runs: the one asked for, or the fastest that can."""

from __future__ import annotations

import importlib
import importlib.util
import logging

import torch

from hpcserve import registry
from hpcserve.attention.base import AttentionBackend, AttentionCaps
from hpcserve.engine.flashinfer_modules import (
    missing_modules,
    module_folders,
    needed_modules,
    use_own_aot_folder,
)
from hpcserve.errors import ConfigError
from hpcserve.log import get_logger

_PACKAGE = "hpcserve.attention"
#: `auto` takes the first of these that is there and can; the rest only if asked for.
PREFERENCE = ("flashinfer", "triton", "torch_sdpa")
#: What an import of flashinfer raises besides a missing module or symbol: versions of its packages
#: that do not match (RuntimeError), a workspace that cannot be written (OSError).
_LOAD_ERRORS = (ImportError, RuntimeError, OSError)
_log = get_logger(__name__)


def choose_attention(
    name: str, *, device: torch.device, page_size: int, head_dim: int, dtype: torch.dtype
) -> type[AttentionBackend]:
    """The class of the backend `name`, or of the fastest that can for `auto`.

    Raises ConfigError that says what the backend lacks.
    """
    if name != "auto":
        try:
            chosen = _load(name)
        except _LOAD_ERRORS as error:
            raise ConfigError(f"attention backend {name} cannot be loaded: {error}") from error
        reason = cannot(chosen.caps, device, page_size, head_dim, dtype)
        if reason:
            raise ConfigError(f"attention backend {name} cannot run here: it has no {reason}")
        return chosen
    present = registry.names(_PACKAGE)
    for candidate in PREFERENCE:
        if candidate not in present:
            continue
        try:
            if candidate == "flashinfer" and (lacks := _uncompiled(device, head_dim, dtype)):
                _log.info(
                    "attention backend flashinfer is left out: %d of its modules for this model "
                    "are not compiled, which takes minutes; `hpcserve kernels build` does it ahead",
                    len(lacks),
                )
                continue
            found = _load(candidate)
        except _LOAD_ERRORS as error:
            # On a CPU nobody misses it.
            level = logging.INFO if device.type == "cuda" else logging.DEBUG
            _log.log(level, "attention backend %s is left out: %s", candidate, error)
            continue
        reason = cannot(found.caps, device, page_size, head_dim, dtype)
        if reason is None:
            return found
        _log.debug("attention backend %s is left out: it has no %s", candidate, reason)
    raise ConfigError(
        f"no attention backend runs heads of {head_dim} in {dtype} on {device.type} "
        f"with pages of {page_size}"
    )


def _uncompiled(device: torch.device, head_dim: int, dtype: torch.dtype) -> list[str]:
    """Modules that flashinfer would compile first; [] where it is not there or has no part."""
    if device.type != "cuda" or importlib.util.find_spec("flashinfer") is None:
        return []
    hopper = torch.cuda.get_device_capability(device) == (9, 0)
    names = needed_modules(head_dim=head_dim, dtype=dtype, hopper=hopper)
    return missing_modules(names, module_folders()) if names else []


def cannot(
    caps: AttentionCaps,
    device: torch.device,
    page_size: int,
    head_dim: int,
    dtype: torch.dtype,
) -> str | None:
    """What a backend lacks for this model and device; None if nothing."""
    if device.type not in caps.devices:
        return f"kernel for {device.type}"
    if page_size not in caps.page_sizes:
        return f"page size {page_size}"
    if head_dim not in caps.head_dims:
        return f"head size {head_dim}"
    if dtype not in caps.dtypes:
        return f"{dtype}"
    return None


def _load(name: str) -> type[AttentionBackend]:
    if name == "flashinfer":
        use_own_aot_folder(importlib.import_module("flashinfer.jit.env"))
    found: type[AttentionBackend] = registry.load(_PACKAGE, name).EntryClass
    return found
