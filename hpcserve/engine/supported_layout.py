"""Layouts that are valid and that this version cannot run: refused before anything starts."""

from __future__ import annotations

from hpcserve.config.engine import EngineConfig
from hpcserve.errors import ConfigError


def check_layout(config: EngineConfig) -> None:
    """Raises ConfigError with the nearest layout that works."""
    parallel = config.parallel
    if parallel.enable_dp_attention:
        raise ConfigError(
            f"enable_dp_attention ({parallel.product()}) is not supported yet; leave it out: plain "
            "--dp gives each replica all experts, and --tp with --ep splits them in a replica"
        )
    if parallel.nnodes > 1:
        raise ConfigError(
            f"nnodes {parallel.nnodes}: one engine over several nodes is not supported yet; start "
            "an engine on each node"
        )
