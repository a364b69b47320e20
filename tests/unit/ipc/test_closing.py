import threading
import time

import zmq

from hpcserve.ipc import closing


class Stuck:
    """A context that never ends."""

    def __init__(self):
        self.released = threading.Event()

    def term(self):
        self.released.wait(120)


class Socket:
    def close(self, linger):
        self.linger = linger


def test_an_end_that_does_not_come_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(closing, "_GRACE_S", 0.05)
    context, socket = Stuck(), Socket()
    started = time.monotonic()
    closing.close_in_time(socket, context, linger_ms=50)
    assert time.monotonic() - started < 60
    assert socket.linger == 50
    context.released.set()


def test_the_last_message_leaves():
    receiving, sending = zmq.Context(), zmq.Context()
    pull, push = receiving.socket(zmq.PULL), sending.socket(zmq.PUSH)
    port = pull.bind_to_random_port("tcp://127.0.0.1")
    push.connect(f"tcp://127.0.0.1:{port}")
    push.send(b"last")
    closing.close_in_time(push, sending)
    assert sending.closed
    assert pull.poll(30_000) and pull.recv() == b"last"
    closing.close_in_time(pull, receiving)
