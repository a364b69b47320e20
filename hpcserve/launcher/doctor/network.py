"""Addresses others can reach, the host's own name, and the fabric."""

from __future__ import annotations

import socket

from hpcserve.errors import HpcserveError
from hpcserve.launcher import network
from hpcserve.launcher.doctor.base import FAIL, PASS, WARN, Finding
from hpcserve.launcher.fabric import _select as fabrics
from hpcserve.launcher.fabric.base import NetworkFacts


def check(ifname: str | None = None) -> list[Finding]:
    """ifname: the interface between the nodes, where it was named."""
    facts = network.facts()
    return [_address(facts, ifname), _name(), _fabric(facts)]


def _address(facts: NetworkFacts, ifname: str | None) -> Finding:
    try:
        name, address = network.own_address(facts, ifname)
    except HpcserveError as error:
        level = FAIL if ifname else WARN
        return Finding(level, "address", str(error), "several nodes need one; one node does not")
    others = ", ".join(one for one in facts.interfaces if one not in (name, "lo")) or "none"
    return Finding(PASS, "address", f"{address} on {name} (other interfaces: {others})")


def _name() -> Finding:
    host = socket.gethostname()
    try:
        found = sorted({str(info[4][0]) for info in socket.getaddrinfo(host, None)})
    except OSError as error:
        return Finding(WARN, "host name", f"{host} does not resolve: {error}", _NAME_FIX)
    if all(network.is_loopback(one.partition("%")[0]) for one in found):
        return Finding(WARN, "host name", f"{host} is {', '.join(found)}", _NAME_FIX)
    return Finding(PASS, "host name", f"{host} is {', '.join(found)}")


_NAME_FIX = (
    "hpcserve does not rely on it, but other programs (Gloo without GLOO_SOCKET_IFNAME) do: "
    "correct /etc/hosts, or name the interface with --ifname"
)


def _fabric(facts: NetworkFacts) -> Finding:
    fabric = fabrics.detect(facts)
    devices = ", ".join(device.name for device in facts.rdma) or ", ".join(facts.cxi_devices)
    down = [device.name for device in facts.rdma if not device.active]
    if fabric.name == "tcp":
        return Finding(
            WARN,
            "fabric",
            f"only TCP{f' ({chr(44).join(down)} is down)' if down else ''}",
            "several nodes will be slow; --require-fabric makes this an error",
        )
    return Finding(PASS, "fabric", f"{fabric.name}: {devices}")
