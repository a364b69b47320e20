"""HPE Slingshot: libfabric's cxi provider under aws-ofi-nccl."""

from __future__ import annotations

from hpcserve.launcher.fabric.base import OFI_NET, Fabric, NetworkFacts, Setting


class Slingshot(Fabric):
    """The four settings that sites with Slingshot agree on for NCCL."""

    name = "slingshot"
    nccl_net = OFI_NET

    def present(self, facts: NetworkFacts) -> bool:
        return bool(facts.cxi_devices)

    def settings(self, *, ib_hca: str | None) -> list[Setting]:
        return [
            Setting(
                "NCCL_NET_GDR_LEVEL", "PHB", "let the NIC read GPU memory across the host bridge"
            ),
            Setting("FI_CXI_DISABLE_HOST_REGISTER", "1", "avoids a deadlock of cxi with CUDA"),
            Setting("FI_MR_CACHE_MONITOR", "userfaultfd", "the default monitor breaks with NCCL"),
            Setting("FI_CXI_DEFAULT_CQ_SIZE", "131072", "the default queue overflows at scale"),
        ]


FABRIC = Slingshot()
