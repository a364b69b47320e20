"""Which compiled modules flashinfer needs for a model, and whether they are there.

flashinfer compiles a module on its first use, which takes minutes. It looks for
`<name>/<name>.so` in its AOT folder, then among what it compiled in its workspace. The names are
flashinfer's own; here only files are looked at, since importing flashinfer takes seconds.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hpcserve.engine.kernel_cache import AOT_FOLDER
from hpcserve.errors import OutputError

_DTYPES = {"torch.bfloat16": "bf16", "torch.float16": "f16"}
_HEAD_DIMS = (64, 128, 256)
#: Heads for which fa3 has kernels.
_FA3_HEAD_DIMS = (64, 128)
#: From this capability on flashinfer writes an architecture with a letter.
_FIRST_WITH_LETTER = 90


def needed_modules(*, head_dim: int, dtype: object, hopper: bool) -> list[str]:
    """Names of the modules that prefill and decode of a model use; [] where there are none.

    Decode on tensor cores is the fa2 prefill module.  dtype: of torch, or its name.
    """
    kind = _DTYPES.get(str(dtype))
    if kind is None or head_dim not in _HEAD_DIMS:
        return []
    fa2 = (
        f"batch_prefill_with_kv_cache_dtype_q_{kind}_dtype_kv_{kind}_dtype_o_{kind}_dtype_idx_i32_"
        f"head_dim_qk_{head_dim}_head_dim_vo_{head_dim}_posenc_0_use_swa_False_"
        "use_logits_cap_False_f16qk_False"
    )
    return [fa2, f"{fa2}_sm90"] if hopper and head_dim in _FA3_HEAD_DIMS else [fa2]


def missing_modules(names: Iterable[str], folders: Iterable[Path]) -> list[str]:
    """Those of `names` that flashinfer would have to compile, if it looks in `folders`."""
    places = list(folders)
    return [name for name in names if not any(_library(place, name).is_file() for place in places)]


def module_folders() -> list[Path]:
    """Where modules for this installation and environment may lie; see use_own_aot_folder."""
    own = own_aot_folder()
    return [*([own] if own.is_dir() else bundled_folders()), jit_folder()]


def own_aot_folder() -> Path:
    """What `hpcserve kernels build` fills: beside flashinfer's workspace, so site-packages may be
    read-only."""
    return Path(os.environ.get("FLASHINFER_WORKSPACE_BASE") or Path.home()) / AOT_FOLDER


def bundled_folders() -> list[Path]:
    """flashinfer's own AOT folder, or that of its package of compiled modules."""
    found = []
    for package, inside in (("flashinfer_jit_cache", "jit_cache"), ("flashinfer", "data/aot")):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            found.append(Path(spec.origin).parent / inside)
    return found


def jit_folder() -> Path:
    """Where flashinfer keeps what it compiled itself, by its version and the architectures."""
    base = Path(os.environ.get("FLASHINFER_WORKSPACE_BASE") or Path.home())
    version = importlib.metadata.version("flashinfer-python")
    archs = sorted(os.environ.get("FLASHINFER_CUDA_ARCH_LIST", "").split())
    name = "_".join(_arch_name(arch) for arch in archs)
    return base / ".cache" / "flashinfer" / version / name / "cached_ops"


def _arch_name(arch: str) -> str:
    name = arch.replace(".", "")
    return name + "a" if name.isdigit() and int(name) >= _FIRST_WITH_LETTER else name


def use_own_aot_folder(jit_env: Any) -> None:
    """Let flashinfer load what `hpcserve kernels build` made.

    jit_env: the module flashinfer.jit.env, whose folders are read at each look-up. Its one AOT
    folder is replaced, so the build copies what was there.
    """
    folder = own_aot_folder()
    if folder.is_dir():
        jit_env.FLASHINFER_AOT_DIR = folder


def install(libraries: Iterable[Path], folder: Path) -> None:
    """Copy compiled modules (`<name>.so`) to `folder`/<name>/, each whole or not at all.

    Raises OutputError where the folder cannot be written.
    """
    try:
        for library in libraries:
            target = _library(folder, library.stem)
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(
                f"{target.name}.{os.uname().nodename}.{os.getpid()}.{threading.get_ident()}"
            )
            shutil.copyfile(library, temporary)
            temporary.replace(target)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error}") from error


def installed(folder: Path) -> list[Path]:
    """The modules in `folder`, sorted by name."""
    return sorted(path for path in folder.glob("*/*.so") if path.stem == path.parent.name)


def _library(folder: Path, name: str) -> Path:
    return folder / name / f"{name}.so"
