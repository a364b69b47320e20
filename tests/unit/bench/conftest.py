"""A null server in a thread of the test, so that the test can look at what it saw."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager

import pytest

from hpcserve.bench.null_server import NullServer


@contextmanager
def running(server):
    """`server` in a thread with a loop of its own; gives its base URL."""
    ready = threading.Event()
    found = {}

    async def serve():
        stop = asyncio.Event()
        async with server.serving() as url:
            found.update(url=url, stop=stop, loop=asyncio.get_running_loop())
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(10)
    try:
        yield found["url"]
    finally:
        found["loop"].call_soon_threadsafe(found["stop"].set)
        thread.join()


@pytest.fixture
def null_server():
    """Start a NullServer with these settings: gives (server, base URL)."""
    stack = []

    def start(**settings):
        server = NullServer(**settings)
        context = running(server)
        url = context.__enter__()
        stack.append(context)
        return server, url

    yield start
    for context in stack:
        context.__exit__(None, None, None)
