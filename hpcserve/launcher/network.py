"""What this node's networks are, and under which address others reach it."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path

import psutil

from hpcserve.errors import ConfigError, FabricError
from hpcserve.launcher.fabric.base import NetworkFacts, RdmaDevice

SYS = Path("/sys/class")
_AMAZON = "0x1d0f"
#: Bridges and tunnels of containers and virtual machines: reachable from this node only.
_LOCAL_PREFIXES = ("docker", "veth", "virbr", "br-", "cni", "flannel", "podman", "tap", "lo")


def facts(sys_class: Path = SYS) -> NetworkFacts:
    return NetworkFacts(
        interfaces=_interfaces(),
        rdma=_rdma_devices(sys_class / "infiniband"),
        cxi_devices=tuple(sorted(one.name for one in (sys_class / "cxi").glob("*"))),
    )


def _interfaces() -> dict[str, tuple[str, ...]]:
    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    found = {}
    for name, addresses in psutil.net_if_addrs().items():
        texts = [a.address.partition("%")[0] for a in addresses if a.family in _IP_FAMILIES]
        if name in up and texts:
            found[name] = tuple(texts)
    return found


_IP_FAMILIES = (socket.AF_INET, socket.AF_INET6)


def _rdma_devices(folder: Path) -> tuple[RdmaDevice, ...]:
    found = []
    for device in sorted(folder.glob("*")):
        if _read(device / "device" / "vendor") == _AMAZON:
            found.append(RdmaDevice(device.name, "efa"))
            continue
        ports = list((device / "ports").glob("*"))
        layers = {_read(port / "link_layer") for port in ports}
        active = any("ACTIVE" in _read(port / "state") for port in ports)
        kind = "ib" if "InfiniBand" in layers else "roce"
        found.append(RdmaDevice(device.name, kind, active))
    return tuple(found)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _reachable(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    return not (parsed.is_loopback or parsed.is_link_local or parsed.is_unspecified)


def own_address(network: NetworkFacts, ifname: str | None) -> tuple[str, str]:
    """(interface, address) under which other nodes reach this one.

    Never looks the host's name up: /etc/hosts often says 127.0.1.1. With no `ifname` it takes
    the interface of the default route, then any other; loopback only where it is asked for.
    Raises FabricError when there is none.
    """
    if ifname:
        if ifname not in network.interfaces:
            raise ConfigError(
                f"--ifname {ifname}: no such interface here, or it is down; "
                f"there are: {', '.join(network.interfaces)}"
            )
        chosen = _best(network.interfaces[ifname])
        return ifname, chosen or network.interfaces[ifname][0]
    for name in _by_preference(network):
        address = _best(network.interfaces[name])
        if address:
            return name, address
    raise FabricError(
        "no network interface of this node has an address that others can reach "
        "(loopback and link-local do not count); name one with --ifname"
    )


def _best(addresses: tuple[str, ...]) -> str | None:
    """IPv4 before IPv6, none that only this node reaches."""
    usable = [one for one in addresses if _reachable(one)]
    return min(usable, key=lambda one: ":" in one, default=None)


def _by_preference(network: NetworkFacts) -> list[str]:
    default = default_interface()
    rest = [name for name in network.interfaces if not name.startswith(_LOCAL_PREFIXES)]
    return sorted(rest, key=lambda name: (name != default, name))


def default_interface(route: Path = Path("/proc/net/route")) -> str | None:
    """The interface of the IPv4 default route with the lowest metric."""
    rows = [line.split() for line in _read(route).splitlines()[1:]]
    defaults = [(int(row[6]), row[0]) for row in rows if len(row) > 7 and row[1] == "00000000"]
    return min(defaults)[1] if defaults else None


def is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def machine_id() -> str:
    """Tells machines apart; several `nodes` of a test cluster may be one machine."""
    return _read(Path("/proc/sys/kernel/random/boot_id")) or socket.gethostname()


def url_host(address: str) -> str:
    """An address as it stands in a URL."""
    return f"[{address}]" if ":" in address else address
