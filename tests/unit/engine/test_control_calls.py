"""Calls that several replicas answer, and what becomes of them when a replica dies."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from hpcserve.engine.control_calls import ControlCalls
from hpcserve.errors import EngineDeadError, EngineError
from hpcserve.ipc.messages import ControlReply, EngineDead


def replica(index: int, **more):
    sent: list = []
    return SimpleNamespace(
        index=index, ready=object(), dead=None, send=sent.append, sent=sent, **more
    )


def ask(calls, replicas, meanwhile, **more):
    """The answers to a call, during which `meanwhile(call_id)` is run."""

    async def scenario():
        task = asyncio.ensure_future(calls.ask(replicas, "stats", **more))
        await asyncio.sleep(0)
        meanwhile(replicas[0].sent[-1].call_id)
        return await asyncio.wait_for(task, 5)

    return asyncio.run(scenario())


def test_all_answer():
    calls, both = ControlCalls(), [replica(0), replica(1)]

    def answer(call_id):
        for one in both:
            calls.answer(one, ControlReply(call_id, results=[str(one.index)]))
        calls.answer(both[0], ControlReply(call_id + 1, results=["nobody asked"]))

    assert [reply.results for reply in ask(calls, both, answer).values()] == [["0"], ["1"]]
    first = both[0].sent[0].call_id
    ask(calls, both, answer)
    assert both[0].sent[1].call_id != first


def test_one_that_dies_is_not_waited_for():
    calls, both = ControlCalls(), [replica(0), replica(1)]

    def answer(call_id):
        calls.answer(both[0], ControlReply(call_id, results=["0"]))
        calls.give_up(both[1])

    assert [reply.results for reply in ask(calls, both, answer).values()] == [["0"]]


def test_one_that_is_dead_is_not_asked():
    calls, both = ControlCalls(), [replica(0), replica(1)]
    both[1].dead = EngineDead("core", "gone")
    replies = ask(calls, both, lambda call_id: calls.answer(both[0], ControlReply(call_id)))
    assert len(replies) == 1
    assert both[1].sent == []


def test_the_end_of_all_ends_the_call():
    calls, one = ControlCalls(), replica(0)
    with pytest.raises(EngineDeadError, match="all gone"):
        ask(calls, [one], lambda call_id: calls.fail(EngineDeadError("all gone")))


def test_a_refusal_and_silence_are_errors():
    calls, one = ControlCalls(), replica(0)
    with pytest.raises(EngineError, match="stats: not now"):
        ask(calls, [one], lambda call_id: calls.answer(one, ControlReply(call_id, error="not now")))
    with pytest.raises(EngineError, match="did not answer stats"):
        ask(calls, [one], lambda call_id: None, timeout_s=0.01)
