"""Loggers whose lines say where they come from: [job|node|dp|pp|tp], as far as it is known."""

from __future__ import annotations

import logging
import sys

from hpcserve import envs

_ROOT = "hpcserve"


def get_logger(name: str) -> logging.Logger:
    """A logger under the `hpcserve` root; `name` is usually `__name__`."""
    return logging.getLogger(name if name.startswith(_ROOT) else f"{_ROOT}.{name}")


def setup_logging(*, role: str = "", level: str | None = None) -> None:
    """Send hpcserve's log to stderr, once per process.

    `role` is the prefix that tells processes of one job apart, such as `core` or `dp0 tp3`.
    """
    root = logging.getLogger(_ROOT)
    prefix = f"[{role}] " if role else ""
    formatter = logging.Formatter(
        f"%(asctime)s %(levelname).1s {prefix}%(message)s", datefmt="%H:%M:%S"
    )
    for handler in list(root.handlers):
        root.removeHandler(handler)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root.addHandler(handler)
    root.setLevel(level or envs.HPCSERVE_LOG_LEVEL.get())
    root.propagate = False
