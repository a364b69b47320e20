"""Choose the fabric: the named one, or on the nodes the best that is really there."""

from __future__ import annotations

from hpcserve import registry
from hpcserve.errors import FabricError
from hpcserve.launcher.fabric.base import Fabric, NetworkFacts, Setting, required_net

PACKAGE = "hpcserve.launcher.fabric"
#: Best first; the last one is always present.
ORDER = ("efa", "slingshot", "ib", "roce", "tcp")


def load(name: str) -> Fabric:
    fabric: Fabric = registry.load(PACKAGE, name).FABRIC
    return fabric


def detect(facts: NetworkFacts) -> Fabric:
    return next(fabric for fabric in map(load, ORDER) if fabric.present(facts))


def choose(name: str, facts: NetworkFacts, *, require: bool) -> Fabric:
    """The fabric for this node.

    Raises FabricError where the one that is required is not there.
    """
    fabric = detect(facts) if name == "auto" else load(name)
    if require and (fabric.name == "tcp" or not fabric.present(facts)):
        seen = ", ".join(device.name for device in facts.rdma) or "no RDMA device"
        wanted = "a fast network" if name == "auto" else name
        raise FabricError(
            f"--require-fabric: this node has not {wanted} (it has {seen}); "
            "ask for other nodes, or drop --require-fabric to run over TCP"
        )
    return fabric


def static_settings(name: str, *, require: bool, ib_hca: str | None) -> list[Setting]:
    """What can be said before the job starts: nothing for `auto`, which the nodes decide."""
    if name == "auto":
        return []
    fabric = load(name)
    return [*fabric.settings(ib_hca=ib_hca), *([required_net(fabric)] if require else [])]
