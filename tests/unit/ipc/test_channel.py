import asyncio
from pathlib import Path

import numpy as np
import pytest
import zmq

from hpcserve.ipc.channel import CoreChannel, FrontendChannel
from hpcserve.ipc.endpoints import create_endpoint, listening_endpoint
from hpcserve.ipc.messages import (
    AbortRequests,
    EngineCoreOutputs,
    EngineCoreRequest,
    EngineDead,
    Ready,
)
from hpcserve.sampling_params import SamplingParams

READY = Ready(64, 512, 4096, 16, [2], "cpu", {"load": 0.1})


@pytest.fixture(params=["ipc", "tcp", "ipv6"])
def endpoint(request, tmp_path):
    if request.param == "ipv6":
        yield ipv6_endpoint()
        return
    parent = None
    if request.param == "tcp":
        parent = tmp_path / ("x" * 120)
        parent.mkdir()
    with create_endpoint(parent) as found:
        yield found


def ipv6_endpoint():
    """As nodes that meet at an address of IPv6 have it."""
    try:
        return listening_endpoint("::1")
    except OSError:
        pytest.skip("this machine has no IPv6")


def open_frontend(endpoint):
    inbox = asyncio.Queue()
    return FrontendChannel(endpoint, inbox.put_nowait), inbox


async def receive(core, count=1):
    """Wait for `count` messages without blocking the event loop."""
    found = []
    while len(found) < count:
        found += core.receive(0)
        await asyncio.sleep(0.001)
    return found


async def soon(queue):
    return await asyncio.wait_for(queue.get(), 60)


def request(request_id, ids=(1, 2, 3)):
    return EngineCoreRequest(request_id, np.array(ids, np.int32), SamplingParams(max_tokens=4))


def test_round_trip_in_order(endpoint):
    async def scenario():
        core = CoreChannel(endpoint.handed_down())
        channel, inbox = open_frontend(endpoint)
        for number in range(200):
            channel.send(request(number))
        channel.send(AbortRequests([5]))
        found = await receive(core, 201)
        assert [m.request_id for _, m in found[:200]] == list(range(200))
        assert found[7][1].prompt_token_ids.tolist() == [1, 2, 3]
        assert found[-1][1] == AbortRequests([5])
        frontend = found[0][0]
        for step in range(300):
            assert core.send(frontend, EngineCoreOutputs([step], [step], []))
        assert [(await soon(inbox)).request_ids for _ in range(300)] == [[n] for n in range(300)]
        channel.close()
        core.close()

    asyncio.run(scenario())


def test_ready_reaches_early_and_late_frontends(endpoint):
    async def scenario():
        early, early_inbox = open_frontend(endpoint)  # connects before anybody binds
        core = CoreChannel(endpoint)
        early.send(request(1))
        await receive(core)
        core.broadcast(READY)
        assert await soon(early_inbox) == READY
        late, late_inbox = open_frontend(endpoint)
        late.send(request(2))
        await receive(core)
        assert await soon(late_inbox) == READY
        assert early_inbox.empty()
        early.close()
        late.close()
        core.close()

    asyncio.run(scenario())


def test_each_frontend_gets_its_own(endpoint):
    async def scenario():
        core = CoreChannel(endpoint)
        one, one_inbox = open_frontend(endpoint)
        two, two_inbox = open_frontend(endpoint)
        one.send(request(1, [1]))
        two.send(request(1, [2]))
        for frontend, message in await receive(core, 2):
            core.send(frontend, EngineCoreOutputs([1], [int(message.prompt_token_ids[0])], []))
        assert (await soon(one_inbox)).token_ids == [1]
        assert (await soon(two_inbox)).token_ids == [2]
        one.close()
        two.close()
        core.close()

    asyncio.run(scenario())


def test_early_death_waits_for_somebody_to_tell(endpoint):
    async def scenario():
        core = CoreChannel(endpoint)
        dead = EngineDead("core", "no GPU", 2)
        telling = asyncio.create_task(asyncio.to_thread(core.broadcast, dead))
        await asyncio.sleep(0.1)
        channel, inbox = open_frontend(endpoint)
        assert await soon(inbox) == dead
        await telling
        channel.close()
        core.close()

    asyncio.run(scenario())


def test_sending_to_a_gone_frontend_is_noticed(endpoint):
    async def scenario():
        core = CoreChannel(endpoint)
        channel, _ = open_frontend(endpoint)
        channel.send(request(1))
        [(frontend, _)] = await receive(core)
        channel.close()
        for _ in range(500):
            if not core.send(frontend, READY):
                break
            await asyncio.sleep(0.01)
        else:
            pytest.fail("the core never noticed")
        core.close()

    asyncio.run(scenario())


def test_strangers_and_nonsense_are_ignored(endpoint):
    async def scenario():
        core = CoreChannel(endpoint)
        context = zmq.Context()
        stranger = context.socket(zmq.DEALER)
        stranger.connect(endpoint.address)
        stranger.send(b"\x90")
        friend = context.socket(zmq.DEALER)
        friend.setsockopt(zmq.IDENTITY, endpoint.token.encode() + b"1")
        friend.connect(endpoint.address)
        friend.send(b"\xc1nonsense")
        friend.send_multipart([b"a", b"b"])
        channel, _ = open_frontend(endpoint)
        await asyncio.sleep(0.1)
        channel.send(request(9))
        found = await receive(core)
        assert [m.request_id for _, m in found] == [9]
        channel.close()
        core.close()
        context.destroy(linger=0)

    asyncio.run(scenario())


def test_waiting_is_bounded_and_files_go_away(tmp_path):
    owned = create_endpoint(tmp_path)
    core = CoreChannel(owned.endpoint)
    assert core.receive(20) == []
    core.close()
    core.close()
    owned.remove()
    assert list(Path(tmp_path).iterdir()) == []
