"""AWS Elastic Fabric Adapter: aws-ofi-nccl finds it by itself and tunes NCCL per instance type."""

from __future__ import annotations

from hpcserve.launcher.fabric.base import OFI_NET, Fabric, NetworkFacts


class Efa(Fabric):
    """Sets nothing: FI_PROVIDER, NCCL_PROTO and their like made today's plugin step aside."""

    name = "efa"
    nccl_net = OFI_NET

    def present(self, facts: NetworkFacts) -> bool:
        return any(device.kind == "efa" for device in facts.rdma)


FABRIC = Efa()
