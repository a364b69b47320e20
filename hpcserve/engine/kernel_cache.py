"""Where compiled code is kept: one folder for all that compiles, named by what it depends on.

`<HPCSERVE_CACHE_DIR>/kernels/<versions and architecture>/{triton,inductor,flashinfer}`: another
version or GPU never sees code that is not its own, so nodes may share the folder over NFS. Starting
at the same time is safe: Triton and inductor write a file beside and rename it, flashinfer locks.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from hpcserve import envs

_PACKAGES = ("torch", "triton", "flashinfer-python")

#: Variables by which each compiler is told, and the folder each gets.
VARIABLES: Mapping[str, str] = {
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
}
#: Of flashinfer's folder: modules compiled ahead, `<name>/<name>.so` as in its own data/aot.
AOT_FOLDER = "aot"


def cache_key(arch: str | None) -> str:
    """What compiled code depends on, as a folder's name.

    arch: compute capability such as `9.0a`; None for a machine without a GPU.
    """
    parts = [f"py{platform.python_version_tuple()[0]}{platform.python_version_tuple()[1]}"]
    for package in _PACKAGES:
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        parts.append(f"{package.removesuffix('-python')}-{version}")
    parts += [platform.machine(), f"sm{arch}" if arch else "no-gpu"]
    return "_".join(parts)


def kernel_folder(arch: str | None) -> Path:
    """The folder of this installation's code for `arch`; it need not exist."""
    return envs.HPCSERVE_CACHE_DIR.get() / "kernels" / cache_key(arch)


def use_kernel_folder(
    arch: str | None,
    environment: MutableMapping[str, str] = os.environ,
    *,
    folder: Path | None = None,
) -> Path:
    """Point every compiler at the folder, but where the user chose another one. Returns it.

    folder: another one than that of `kernel_folder`. Must run before triton or flashinfer is
    imported.
    """
    folder = folder or kernel_folder(arch)
    for variable, name in VARIABLES.items():
        environment.setdefault(variable, str(folder / name))
    if arch is not None:
        # flashinfer names its folder by it, and would else ask every GPU of the node.
        environment.setdefault("FLASHINFER_CUDA_ARCH_LIST", arch)
    return folder


def use_driver_cache(environment: MutableMapping[str, str] = os.environ) -> None:
    """The driver's own cache, which it keys by itself. Must run before CUDA starts."""
    folder = envs.HPCSERVE_CACHE_DIR.get() / "kernels" / "cuda"
    environment.setdefault("CUDA_CACHE_PATH", str(folder))


def gpu_arch(capability: tuple[int, int]) -> str:
    """`9.0a` for (9, 0): from Hopper on, code for one generation alone has a letter."""
    major, minor = capability
    return f"{major}.{minor}a" if major >= 9 else f"{major}.{minor}"
