"""A fabric sets only what the topology forces, says why, and never overrides the user."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

#: The name under which aws-ofi-nccl registers, in old and new versions.
OFI_NET = "AWS Libfabric"


@dataclass(frozen=True)
class Setting:
    """One variable, and the reason for it in words that fit behind a `#`."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True)
class RdmaDevice:
    """An entry of /sys/class/infiniband.  kind: efa, ib or roce."""

    name: str
    kind: str
    active: bool = True


@dataclass(frozen=True)
class NetworkFacts:
    """What a node sees of its networks; `interfaces` maps a name to its addresses."""

    interfaces: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rdma: tuple[RdmaDevice, ...] = ()
    cxi_devices: tuple[str, ...] = ()


class Fabric(ABC):
    """`name` is the module's name, and the word after `--fabric`."""

    name: str
    #: NCCL's own name of this transport: with it, a missing transport is an error, not TCP.
    nccl_net: str

    @abstractmethod
    def present(self, facts: NetworkFacts) -> bool:
        """Whether this node has such a network, up and usable."""

    def settings(self, *, ib_hca: str | None) -> list[Setting]:
        """Variables that this network needs on every node."""
        return []


def required_net(fabric: Fabric) -> Setting:
    return Setting(
        "NCCL_NET", fabric.nccl_net, "--require-fabric: no silent fallback to TCP sockets"
    )


def interface_settings(ifname: str) -> list[Setting]:
    """For set-up traffic between nodes: the interface that carries the head's address."""
    return [
        Setting("NCCL_SOCKET_IFNAME", f"={ifname}", "exactly the interface of the head's address"),
        Setting("GLOO_SOCKET_IFNAME", ifname, "else gloo may bind the loopback interface"),
        Setting("TP_SOCKET_IFNAME", ifname, "the same for torch's own transport"),
    ]


def not_yet_set(settings: Iterable[Setting], environ: Mapping[str, str]) -> list[Setting]:
    """Those whose variable the user has not exported."""
    return [one for one in settings if one.name not in environ]
