"""Layouts that are valid and that this version cannot run: refused before anything starts."""

from __future__ import annotations

from hpcserve.config.engine import EngineConfig
from hpcserve.errors import ConfigError


def check_layout(config: EngineConfig) -> None:
    """Raises ConfigError with the nearest layout that works."""
    parallel = config.parallel
    if parallel.enable_dp_attention and (parallel.pp_size > 1 or parallel.nnodes > 1):
        raise ConfigError(
            f"enable_dp_attention with pp_size {parallel.pp_size} and nnodes {parallel.nnodes} is "
            "not supported yet; it runs with pp_size 1 on one node"
        )
