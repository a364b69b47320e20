"""One address in front of several servers: who gets a connection, and what becomes of it."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from hpcserve.launcher import front as fronts
from hpcserve.launcher.front import Backend, Front


@contextlib.asynccontextmanager
async def echo(name):
    """A server that says its name, then sends back what it gets."""

    async def answer(reader, writer):
        writer.write(name.encode())
        while data := await reader.read(1000):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield Backend(name, "127.0.0.1", server.sockets[0].getsockname()[1])


@contextlib.asynccontextmanager
async def front_of(backends, patience_s=0.0):
    front = Front(lambda: list(backends), patience_s)
    async with front.listening("127.0.0.1", 0) as server:
        try:
            yield Listening(server.sockets[0].getsockname()[1], front)
        finally:
            closing, CLIENTS[:] = [*CLIENTS], []
            for writer in closing:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
            await asyncio.sleep(0.05)  # the other sides see it


CLIENTS = []


class Listening(int):
    """A port, and the front behind it."""

    def __new__(cls, port, front):
        made = super().__new__(cls, port)
        made.front = front
        return made

    async def until_open(self, number):
        """Until so many connections are left: the front sees their ends when it gets to it."""
        deadline = asyncio.get_running_loop().time() + 60
        while self.front._open.total() != number:
            assert asyncio.get_running_loop().time() < deadline, self.front._open
            await asyncio.sleep(0.01)


async def connect(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    CLIENTS.append(writer)
    return (await reader.read(100)).decode(), reader, writer


def test_connections_go_to_the_least_busy_and_bytes_both_ways():
    async def main():
        async with echo("a") as a, echo("b") as b, front_of([a, b]) as port:
            first = [await connect(port) for _ in range(4)]
            assert sorted(name for name, _, _ in first) == ["a", "a", "b", "b"]
            blob = bytes(range(256)) * 2000
            _, reader, writer = next(one for one in first if one[0] == "b")
            writer.write(blob)
            assert await reader.readexactly(len(blob)) == blob
            writer.write_eof()  # the end is passed on, and so is that of the answer
            assert await reader.read() == b""
            for name, _, writer in first:
                if name == "b":
                    writer.close()
            await port.until_open(2)
            assert [(await connect(port))[0] for _ in range(2)] == ["b", "b"]

    asyncio.run(main())


def test_a_server_that_is_gone_is_passed_over():
    async def main():
        async with echo("b") as b:
            async with echo("a") as a:
                pass
            async with front_of([a, b]) as port:
                assert [(await connect(port))[0] for _ in range(3)] == ["b", "b", "b"]

    asyncio.run(main())


def test_where_there_is_none_the_answer_says_so():
    async def main():
        async with front_of([]) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            CLIENTS.append(writer)
            writer.write(b"GET /v1/models HTTP/1.1\r\n\r\n")
            head, body = (await reader.read()).split(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 ")
            assert json.loads(body)["error"] == {
                "message": "no server of this job is ready",
                "type": "overloaded_error",
                "param": None,
                "code": "no_server",
            }

    asyncio.run(main())


def test_a_connection_waits_for_the_server_that_comes_back(monkeypatch):
    monkeypatch.setattr(fronts, "REFRESH_S", 0.05)

    async def main():
        found = []
        async with front_of(found, patience_s=60.0) as port, echo("later") as later:
            waiting = asyncio.ensure_future(connect(port))
            await asyncio.sleep(0.2)
            assert not waiting.done()
            found.append(later)
            assert (await waiting)[0] == "later"

    asyncio.run(main())


def test_a_file_system_that_fails_once_does_not_freeze_what_is_known(monkeypatch):
    monkeypatch.setattr(fronts, "REFRESH_S", 0.05)

    async def main():
        async with echo("later") as later:
            answers = iter([[], OSError(116, "Stale file handle")])

            def find():
                answer = next(answers, [later])
                if isinstance(answer, OSError):
                    raise answer
                return answer

            front = Front(find, patience_s=60.0)
            async with front.listening("127.0.0.1", 0) as server:
                name, _, writer = await connect(server.sockets[0].getsockname()[1])
                writer.close()
                assert name == "later"

    asyncio.run(main())


def test_a_port_that_is_taken_is_an_error():
    async def main():
        async with front_of([]) as port:
            with pytest.raises(OSError, match="address already in use"):
                async with Front(list).listening("127.0.0.1", port):
                    pass

    asyncio.run(main())
