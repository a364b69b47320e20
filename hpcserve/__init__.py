"""hpcserve: LLM inference on SLURM clusters, served over HTTP or streamed through files.

Importing this package costs no torch: the public names below load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hpcserve._version import __version__

if TYPE_CHECKING:
    from hpcserve.config.engine import EngineConfig
    from hpcserve.engine.llm import LLM
    from hpcserve.grammar import Grammar
    from hpcserve.sampling_params import SamplingParams

_LAZY = {
    "LLM": "hpcserve.engine.llm",
    "EngineConfig": "hpcserve.config.engine",
    "Grammar": "hpcserve.grammar",
    "SamplingParams": "hpcserve.sampling_params",
}

__all__ = ["LLM", "EngineConfig", "Grammar", "SamplingParams", "__version__"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(
        f"module 'hpcserve' has no attribute {name!r}; it has {', '.join(__all__)}"
    )
