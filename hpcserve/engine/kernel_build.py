"""`hpcserve kernels build`: compile ahead what a model needs, so that no start waits for it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpcserve.config.checkpoint import CheckpointConfig
from hpcserve.config.engine import EngineConfig
from hpcserve.engine.flashinfer_modules import (
    bundled_folders,
    install,
    installed,
    missing_modules,
    needed_modules,
    own_aot_folder,
)
from hpcserve.engine.kernel_cache import use_driver_cache, use_kernel_folder
from hpcserve.errors import ConfigError, EngineError

Say = Callable[[str], None]


def build_flashinfer(checkpoint: CheckpointConfig, dtype: str, arch: str, say: Say) -> Path | None:
    """Compile flashinfer's modules for a model's heads and put all of them into one folder.

    dtype: bfloat16 or float16.  arch: such as 9.0a; no GPU is needed, but nvcc is.
    Returns the folder; None where flashinfer is not installed.
    Raises EngineError with the compiler's words.
    """
    use_kernel_folder(arch)
    if importlib.util.find_spec("flashinfer") is None:
        say("flashinfer is not installed: nothing to compile for it")
        return None
    folder = own_aot_folder()
    # flashinfer knows one folder of compiled modules, so ours takes the others in.
    found = [path for place in bundled_folders() for path in installed(place)]
    have = {path.stem for path in installed(folder)}
    install([path for path in found if path.stem not in have], folder)
    names = needed_modules(
        head_dim=checkpoint.head_dim, dtype=f"torch.{dtype}", hopper=arch.startswith("9.0")
    )
    missing = missing_modules(names, [folder])
    if missing:
        say(f"compiling {len(missing)} modules of flashinfer for sm{arch}; this takes minutes")
        install(_compile(missing, checkpoint.head_dim, dtype), folder)
    say(f"{len(names)} modules of flashinfer in {folder}, {len(missing)} of them new")
    return folder


def _compile(names: list[str], head_dim: int, dtype: str) -> list[Path]:
    os.environ.setdefault("MAX_JOBS", str(len(os.sched_getaffinity(0))))
    jit: Any = importlib.import_module("flashinfer.jit")
    torch: Any = importlib.import_module("torch")
    kind = getattr(torch, dtype)
    specs = [
        jit.gen_batch_prefill_module(
            "fa3" if name.endswith("_sm90") else "fa2",
            *(kind, kind, kind, torch.int32),
            *(head_dim, head_dim),
            0,  # no positions inside: rope has been applied
            *(False, False, False),  # sliding window, soft cap, f16 scores
        )
        for name in names
    ]
    unknown = {spec.name for spec in specs} ^ set(names)
    if unknown:
        raise EngineError(
            f"this version of flashinfer names its modules otherwise: {', '.join(sorted(unknown))}"
        )
    try:
        jit.build_jit_specs(specs, verbose=False)
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        raise EngineError(f"flashinfer's modules do not compile: {error}") from error
    return [Path(spec.jit_library_path) for spec in specs]


def build_triton(config: EngineConfig, say: Say) -> bool:
    """Compile the project's own kernels in the shapes of a model: start its engine with dummy
    weights, graphs and all, as a server would. False where there is no GPU to compile for."""
    import torch

    from hpcserve.engine.worker import Worker

    use_driver_cache()
    if not torch.cuda.is_available():
        say("no GPU here: the project's own kernels compile in seconds at the first start")
        return False
    worker = Worker(config.replace(load_format="dummy"))
    seconds = sum(worker.info.timings_s.values())
    say(f"the project's own kernels are compiled; the engine started in {seconds:.1f} s")
    return True


def arch_here() -> str | None:
    """Of the first GPU; None without one."""
    import torch

    from hpcserve.engine.kernel_cache import gpu_arch

    return gpu_arch(torch.cuda.get_device_capability(0)) if torch.cuda.is_available() else None


def dtype_of(config: EngineConfig, checkpoint: CheckpointConfig) -> str:
    """What the model will run in on a GPU. Raises ConfigError for one flashinfer has no part in."""
    name = checkpoint.torch_dtype if config.model.dtype == "auto" else config.model.dtype
    if name not in ("bfloat16", "float16"):
        raise ConfigError(f"flashinfer has no kernels for {name}; Triton's need no build")
    return name
