"""What is broken on this node is said now, not after the weights have been read."""

from __future__ import annotations

from hpcserve.errors import ConfigError, EngineStartError
from hpcserve.launcher.base import JobEnvironment
from hpcserve.launcher.doctor.base import FAIL, PASS
from hpcserve.launcher.doctor.examine import node_findings
from hpcserve.launcher.environment import gpus_on_node
from hpcserve.log import get_logger

log = get_logger(__name__)

#: What a job of one node need not hear of.
_BETWEEN_NODES = ("address", "host name", "fabric", "locked memory")


def check_gpus(here: JobEnvironment, world_size: int) -> None:
    """Every node must have its share: `--gpus=5` on two nodes gives 4 and 1.

    Raises ConfigError that names this node and what it has.
    """
    gpus = gpus_on_node()
    if gpus is not None and world_size > 1 and gpus * here.num_nodes != world_size:
        raise ConfigError(
            f"node {here.node_name} (rank {here.rank}) has {gpus} GPUs, but {world_size} ranks on "
            f"{here.num_nodes} nodes need {world_size / here.num_nodes:g} on each; "
            "ask for --gpus-per-node, not for --gpus"
        )


def check_health(here: JobEnvironment) -> None:
    """What `hpcserve doctor` looks at on one node. Raises EngineStartError for what FAILs."""
    alone = here.num_nodes == 1
    findings = [one for one in node_findings() if one.level != PASS]
    findings = [one for one in findings if not (alone and one.check in _BETWEEN_NODES)]
    for one in findings:
        log.warning("%s %s: %s; %s", one.level, one.check, one.found, one.fix)
    failed = [one for one in findings if one.level == FAIL]
    if failed:
        raise EngineStartError(
            f"node {here.node_name} is not fit: {failed[0].check}: {failed[0].found}; "
            f"{failed[0].fix} (--preflight off starts all the same)"
        )
