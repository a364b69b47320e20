"""Environment variables that are no options (those go by HPCSERVE_<NAME>): type, default, meaning.

A value of the wrong type is an error, never a silent default.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from hpcserve.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class EnvVar(Generic[T]):
    """One variable; `get()` parses it each time, so that tests may set it."""

    name: str
    parse: Callable[[str], T]
    default: T
    help: str

    def get(self) -> T:
        text = os.environ.get(self.name)
        if text is None or text == "":
            return self.default
        try:
            return self.parse(text)
        except ValueError as error:
            raise ConfigError(f"environment variable {self.name}={text!r}: {error}") from error


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _switch(text: str) -> bool:
    if text.lower() in {"1", "true", "yes", "on"}:
        return True
    if text.lower() in {"0", "false", "no", "off"}:
        return False
    raise ValueError("expected 1 or 0")


def _level(text: str) -> str:
    if text.upper() not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
        raise ValueError("expected DEBUG, INFO, WARNING or ERROR")
    return text.upper()


def _bytes(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError("expected a number of bytes, 0 or more")
    return number


HPCSERVE_CACHE_DIR = EnvVar(
    "HPCSERVE_CACHE_DIR",
    _path,
    Path("~/.cache/hpcserve").expanduser(),
    "compiled kernels and other things that can be made again; may be shared between nodes",
)
HPCSERVE_STATE_DIR = EnvVar(
    "HPCSERVE_STATE_DIR",
    _path,
    Path("~/.local/state/hpcserve").expanduser(),
    "run directories of submitted jobs; every node of the cluster must see it",
)
HPCSERVE_CLUSTER: EnvVar[str] = EnvVar(
    "HPCSERVE_CLUSTER", str, "", "cluster file, or name of a cluster preset"
)
HPCSERVE_ENDPOINT_FILE: EnvVar[Path | None] = EnvVar(
    "HPCSERVE_ENDPOINT_FILE", _path, None, "where `hpcserve serve` writes host and port once bound"
)
HPCSERVE_DEADLINE_FILE: EnvVar[Path | None] = EnvVar(
    "HPCSERVE_DEADLINE_FILE", _path, None, "where the launcher writes when the job will end"
)
HPCSERVE_LOG_LEVEL = EnvVar("HPCSERVE_LOG_LEVEL", _level, "INFO", "level of the log on stderr")
HPCSERVE_MODEL: EnvVar[str] = EnvVar("HPCSERVE_MODEL", str, "", "the model when none is named")
HPCSERVE_API_KEY: EnvVar[str] = EnvVar(
    "HPCSERVE_API_KEY", str, "", "key that `hpcserve serve` asks of its clients"
)
HPCSERVE_DISABLE_KERNELS = EnvVar(
    "HPCSERVE_DISABLE_KERNELS", _switch, False, "run the plain torch reference of every kernel"
)
HPCSERVE_FUSED_BYTES: EnvVar[int | None] = EnvVar(
    "HPCSERVE_FUSED_BYTES",
    _bytes,
    None,
    "sums over a TP group of up to so many bytes are made by every GPU itself, in the norm's kernel",
)
HPCSERVE_PUSHED_BYTES: EnvVar[int | None] = EnvVar(
    "HPCSERVE_PUSHED_BYTES",
    _bytes,
    None,
    "larger ones of up to so many bytes there too, some rows by each GPU; 0: never",
)
HPCSERVE_EXPERT_HITS_FILE: EnvVar[Path | None] = EnvVar(
    "HPCSERVE_EXPERT_HITS_FILE",
    _path,
    None,
    "count the distinct experts that steps hit and write their means there at the end",
)
HPCSERVE_DIST_SECRET: EnvVar[str] = EnvVar(
    "HPCSERVE_DIST_SECRET", str, "", "what the nodes of one engine know and nobody else"
)
HPCSERVE_DIST_LISTEN_FD = EnvVar(
    "HPCSERVE_DIST_LISTEN_FD", int, -1, "listening socket for --dist-init-addr, from the launcher"
)
HPCSERVE_START_TIMEOUT_S = EnvVar(
    "HPCSERVE_START_TIMEOUT_S", float, 600.0, "seconds to wait for the engine to become ready"
)


def all_variables() -> list[EnvVar[object]]:
    """Every variable declared here, in order."""
    return [value for value in globals().values() if isinstance(value, EnvVar)]
