from __future__ import annotations

import pytest

from hpcserve.config.cluster import ClusterConfig
from hpcserve.errors import ConfigError, FabricError
from hpcserve.launcher import network
from hpcserve.launcher.fabric import _on_node
from hpcserve.launcher.fabric import _select as fabrics
from hpcserve.launcher.fabric.base import NetworkFacts, RdmaDevice, interface_settings, not_yet_set

LO = {"lo": ("127.0.0.1", "::1")}


def facts(**interfaces):
    return NetworkFacts(interfaces={**LO, **interfaces})


@pytest.fixture(autouse=True)
def _default_route(monkeypatch):
    monkeypatch.setattr(network, "default_interface", lambda: "ens5")


def test_a_host_name_that_means_127_0_1_1_does_not_matter(monkeypatch):
    def no_lookup(*_):
        raise AssertionError("the host's name must not be looked up")

    monkeypatch.setattr("socket.getaddrinfo", no_lookup)
    monkeypatch.setattr("socket.gethostbyname", no_lookup)
    found = network.own_address(facts(ens5=("10.0.0.5", "fe80::1")), None)
    assert found == ("ens5", "10.0.0.5")


def test_of_two_nics_the_default_routes_is_taken_unless_named():
    two = facts(ens5=("10.0.0.5",), hsn0=("172.16.0.5",))
    assert network.own_address(two, None) == ("ens5", "10.0.0.5")
    assert network.own_address(two, "hsn0") == ("hsn0", "172.16.0.5")


def test_loopback_link_local_and_bridges_are_refused():
    with pytest.raises(FabricError, match="--ifname"):
        network.own_address(facts(docker0=("172.17.0.1",), ens9=("169.254.3.4",)), None)


def test_ipv6_alone_will_do():
    assert network.own_address(facts(ens5=("fd00::2",)), None) == ("ens5", "fd00::2")
    assert network.url_host("fd00::2") == "[fd00::2]"


def test_unknown_interface_lists_those_there_are():
    with pytest.raises(ConfigError, match="lo, ens5"):
        network.own_address(facts(ens5=("10.0.0.5",)), "ib0")


def make_device(sys_class, name, vendor="0x15b3", layer="InfiniBand", state="4: ACTIVE"):
    port = sys_class / "infiniband" / name / "ports" / "1"
    port.mkdir(parents=True)
    (port / "link_layer").write_text(layer + "\n")
    (port / "state").write_text(state + "\n")
    (sys_class / "infiniband" / name / "device").mkdir()
    (sys_class / "infiniband" / name / "device" / "vendor").write_text(vendor + "\n")


@pytest.mark.parametrize(
    ("device", "fabric"),
    [
        ({"name": "rdmap0s6", "vendor": "0x1d0f", "layer": "Unspecified"}, "efa"),
        ({"name": "mlx5_0"}, "ib"),
        ({"name": "mlx5_0", "layer": "Ethernet"}, "roce"),
        ({"name": "mlx5_0", "state": "1: DOWN"}, "tcp"),
    ],
)
def test_fabric_is_seen_in_sys(tmp_path, device, fabric):
    make_device(tmp_path, **device)
    assert fabrics.detect(network.facts(tmp_path)).name == fabric


def test_slingshot_is_seen(tmp_path):
    (tmp_path / "cxi" / "cxi0").mkdir(parents=True)
    assert fabrics.detect(network.facts(tmp_path)).name == "slingshot"


@pytest.mark.parametrize("name", ["auto", "efa", "ib", "slingshot"])
def test_required_fabric_that_is_not_there_is_an_error(name):
    with pytest.raises(FabricError, match="--require-fabric"):
        fabrics.choose(name, facts(ens5=("10.0.0.5",)), require=True)


def test_required_fabric_that_is_there_is_fine():
    there = NetworkFacts(rdma=(RdmaDevice("mlx5_0", "ib"),))
    assert fabrics.choose("auto", there, require=True).name == "ib"


def test_what_the_user_exported_is_kept():
    chosen = not_yet_set(interface_settings("ens5"), {"NCCL_SOCKET_IFNAME": "eth9"})
    assert {one.name: one.value for one in chosen} == {
        "GLOO_SOCKET_IFNAME": "ens5",
        "TP_SOCKET_IFNAME": "ens5",
    }


def test_obsolete_variables_are_never_set():
    never = {
        "RDMAV_FORK_SAFE",
        "FI_PROVIDER",
        "NCCL_PROTO",
        "NCCL_ALGO",
        "LD_PRELOAD",
        "NCCL_BUFFSIZE",
    }
    for name in fabrics.ORDER:
        settings = fabrics.static_settings(name, require=True, ib_hca="mlx5_0")
        assert not never & {one.name for one in settings}
        assert all(one.reason for one in settings)


def test_what_the_batch_script_has_set_is_not_called_the_users(monkeypatch):
    said = []
    monkeypatch.setattr(_on_node.log, "info", lambda text, *words: said.append(text % words))
    monkeypatch.setenv("NCCL_IB_DISABLE", "1")  # by the script, for --fabric tcp
    monkeypatch.setenv("NCCL_NET", "IB")  # by the user
    for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    _on_node.settings_of_node(ClusterConfig(fabric="tcp"), facts(ens5=("10.0.0.5",)), "ens5")
    assert "NCCL_IB_DISABLE=1  # --fabric tcp: no RDMA" in said
    assert "NCCL_NET=IB  # yours, kept" in said
