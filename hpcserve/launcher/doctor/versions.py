"""Versions of what we stand on, read without importing it."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

from hpcserve._version import __version__
from hpcserve.launcher.doctor.base import FAIL, PASS, Finding

_NEEDED = ("torch", "transformers", "submitit")
_WELCOME = ("flashinfer-python", "triton", "nvidia-nccl-cu12", "nvidia-nccl-cu13")


def check() -> list[Finding]:
    found, missing = [f"hpcserve {__version__}", f"Python {platform.python_version()}"], []
    for name in (*_NEEDED, *_WELCOME):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            if name in _NEEDED:
                missing.append(name)
    if missing:
        fix = f"{sys.executable} -m pip install hpcserve"
        return [Finding(FAIL, "versions", f"{', '.join(missing)} is missing", fix)]
    return [Finding(PASS, "versions", ", ".join(found))]
