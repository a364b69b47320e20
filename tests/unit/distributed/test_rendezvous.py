"""Where nodes meet: addresses that would work on this machine alone."""

import socket

import pytest

from hpcserve.distributed.rendezvous import Head
from hpcserve.errors import ConfigError


@pytest.fixture(autouse=True)
def _secret(monkeypatch):
    monkeypatch.setenv("HPCSERVE_DIST_SECRET", "s1")


def test_a_name_that_is_loopback_here_is_refused(monkeypatch):
    """As Debian's /etc/hosts has it for a machine's own name."""
    found = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", 0))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [found])
    with pytest.raises(ConfigError, match=r"node0 is 127\.0\.1\.1, a loopback address"):
        Head("node0:29500", 2, lambda *_: None)


def test_a_loopback_address_that_was_written_down_is_meant():
    Head(f"127.0.0.1:{_free()}", 2, lambda *_: None).close()


def _free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
