"""RDMA over Ethernet; NCCL 2.21 and later find the right GID by themselves."""

from __future__ import annotations

from hpcserve.launcher.fabric.base import Fabric, NetworkFacts, Setting
from hpcserve.launcher.fabric.ib import hca_setting


class Roce(Fabric):
    name = "roce"
    nccl_net = "IB"

    def present(self, facts: NetworkFacts) -> bool:
        return any(device.kind == "roce" and device.active for device in facts.rdma)

    def settings(self, *, ib_hca: str | None) -> list[Setting]:
        return hca_setting(ib_hca)


FABRIC = Roce()
