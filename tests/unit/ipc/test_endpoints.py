import socket
from pathlib import Path

import pytest

from hpcserve.ipc.channel import CoreChannel
from hpcserve.ipc.endpoints import Endpoint, create_endpoint, listening_endpoint


def test_socket_folder_is_private_and_goes_away(tmp_path):
    owned = create_endpoint(tmp_path)
    folder = Path(owned.endpoint.address.removeprefix("ipc://")).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    owned.remove()
    owned.remove()
    assert not folder.exists()


def test_long_path_falls_back_to_loopback(tmp_path):
    parent = tmp_path / ("x" * 120)
    parent.mkdir()
    with create_endpoint(parent) as endpoint:
        assert endpoint.address.startswith("tcp://127.0.0.1:")
    assert list(parent.iterdir()) == []


def test_text_form_round_trips_and_repr_hides_the_token():
    endpoint = Endpoint("ipc:///tmp/a#b/core.sock", "secret")
    assert Endpoint.parse(str(endpoint)) == endpoint
    assert "secret" not in repr(endpoint)
    with pytest.raises(ValueError, match="no endpoint"):
        Endpoint.parse("ipc:///tmp/core.sock")


def test_a_port_is_taken_before_the_process_that_answers_there_runs():
    endpoint = listening_endpoint("127.0.0.1")
    port = int(endpoint.address.rpartition(":")[2])
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", port))
    child = Endpoint.parse(endpoint.handed_down())
    assert child == endpoint and child.descriptor == endpoint.descriptor
    assert Endpoint.parse(str(endpoint)).descriptor == -1
    core = CoreChannel(child)
    with socket.socket() as frontend:
        frontend.connect(("127.0.0.1", port))
    core.close()
    # Nobody listens there any more.
    with socket.socket() as other:
        assert other.connect_ex(("127.0.0.1", port)) != 0


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(OSError, match="assign"):
        listening_endpoint("192.0.2.1")
