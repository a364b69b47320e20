"""Plain sockets: always there, an order of magnitude slower."""

from __future__ import annotations

from hpcserve.launcher.fabric.base import Fabric, NetworkFacts, Setting


class Tcp(Fabric):
    name = "tcp"
    nccl_net = "Socket"

    def present(self, facts: NetworkFacts) -> bool:
        return True

    def settings(self, *, ib_hca: str | None) -> list[Setting]:
        return [
            Setting("NCCL_IB_DISABLE", "1", "--fabric tcp: no RDMA"),
            Setting("NCCL_NET", "Socket", "--fabric tcp: no network plug-in either"),
        ]


FABRIC = Tcp()
