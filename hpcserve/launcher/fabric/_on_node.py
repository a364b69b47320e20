"""What this node's network forces, less what the user has set; said aloud, with reasons."""

from __future__ import annotations

import os

from hpcserve.config.cluster import ClusterConfig
from hpcserve.launcher.fabric._select import choose
from hpcserve.launcher.fabric.base import (
    NetworkFacts,
    Setting,
    interface_settings,
    not_yet_set,
    required_net,
)
from hpcserve.log import get_logger

log = get_logger(__name__)


def settings_of_node(cluster: ClusterConfig, facts: NetworkFacts, ifname: str) -> list[Setting]:
    """The variables to set for the engine. ifname: the interface of this node's address.

    Raises FabricError where --require-fabric asks for a network that is not there.
    """
    fabric = choose(cluster.fabric, facts, require=cluster.require_fabric)
    forced = [*fabric.settings(ib_hca=cluster.ib_hca), *interface_settings(ifname)]
    if cluster.require_fabric:
        forced.append(required_net(fabric))
    if cluster.fabric == "auto" and fabric.name == "tcp":
        forced = interface_settings(ifname)
    log.info("fabric: %s", fabric.name)
    chosen = not_yet_set(forced, os.environ)
    for one in forced:
        # The batch script may have set it for the same reason.
        value = one.value if one in chosen else os.environ[one.name]
        log.info(
            "%s=%s  # %s", one.name, value, one.reason if value == one.value else "yours, kept"
        )
    return chosen
