"""A folder of this user alone for compiled code, where the one that was chosen cannot be written."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from hpcserve.engine.kernel_cache import AOT_FOLDER, VARIABLES, kernel_folder
from hpcserve.log import get_logger

_log = get_logger(__name__)


def writable_kernel_folder(arch: str) -> Path:
    """The kernel folder for `arch`; where it cannot be written, one in the temporary folder.

    What was compiled ahead into a folder that can only be read is used all the same.
    """
    folder = kernel_folder(arch)
    if all(name in os.environ for name in VARIABLES):
        return folder  # nothing goes there: the user chose folders for every compiler
    reason = _why_not(folder)
    if reason is None:
        return folder
    own = _private_folder() / folder.name
    own.mkdir(exist_ok=True)
    _take_over(folder, own)
    _log.warning(
        "compiled kernels go to %s and stay on this node, since %s cannot be written (%s); "
        "HPCSERVE_CACHE_DIR names another folder",
        own,
        folder,
        reason,
    )
    return own


def _why_not(folder: Path) -> str | None:
    """Why nothing can be written to `folder`, which is made; None where it can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"a quota shows only when something is written")
    except OSError as error:
        return error.strerror or str(error)
    return None


def _private_folder() -> Path:
    """Everyone may write to the temporary folder, and this is code: it must be ours alone."""
    folder = Path(tempfile.gettempdir()) / f"hpcserve-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
        return folder
    return Path(tempfile.mkdtemp(prefix=f"hpcserve-{os.getuid()}-"))


def _take_over(folder: Path, own: Path) -> None:
    """Copy Triton's kernels, which are small, and link flashinfer's modules, which are not."""
    kernels, copy = folder / VARIABLES["TRITON_CACHE_DIR"], own / VARIABLES["TRITON_CACHE_DIR"]
    if kernels.is_dir() and not copy.exists():
        # Renamed when it is whole: other ranks of the node do the same meanwhile.
        half = Path(tempfile.mkdtemp(dir=own))
        shutil.copytree(kernels, half / copy.name)
        with suppress(OSError):  # another rank was first
            (half / copy.name).rename(copy)
        shutil.rmtree(half)
    modules = folder / VARIABLES["FLASHINFER_WORKSPACE_BASE"] / AOT_FOLDER
    link = own / VARIABLES["FLASHINFER_WORKSPACE_BASE"] / AOT_FOLDER
    if modules.is_dir():
        link.parent.mkdir(exist_ok=True)
        with suppress(FileExistsError):
            link.symlink_to(modules)
