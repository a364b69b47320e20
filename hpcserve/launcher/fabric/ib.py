"""InfiniBand, by NCCL's own verbs transport."""

from __future__ import annotations

from hpcserve.launcher.fabric.base import Fabric, NetworkFacts, Setting


def hca_setting(ib_hca: str | None) -> list[Setting]:
    if not ib_hca:
        return []
    return [Setting("NCCL_IB_HCA", f"={ib_hca}", "only the compute rails (--ib-hca)")]


class InfiniBand(Fabric):
    name = "ib"
    nccl_net = "IB"

    def present(self, facts: NetworkFacts) -> bool:
        return any(device.kind == "ib" and device.active for device in facts.rdma)

    def settings(self, *, ib_hca: str | None) -> list[Setting]:
        return hca_setting(ib_hca)


FABRIC = InfiniBand()
