"""The core's loop: real messages over a real channel, a worker without a model."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from hpcserve.config.engine import EngineConfig
from hpcserve.engine.core import EngineCore
from hpcserve.fake_worker import FakeExecutor, expected_tokens
from hpcserve.ipc.channel import CoreChannel, FrontendChannel
from hpcserve.ipc.endpoints import Endpoint, create_endpoint
from hpcserve.ipc.messages import (
    AbortRequests,
    ControlReply,
    ControlRequest,
    EngineCoreOutputs,
    EngineCoreRequest,
    Ready,
    RequestFailed,
)
from hpcserve.sampling_params import SamplingParams

VOCAB = 1000


@contextmanager
def running_core(
    step_time_s: float = 0.0, **options: object
) -> Iterator[tuple[Endpoint, EngineCore]]:
    config = EngineConfig.from_options({"page_size": 16, "max_running_requests": 16, **options})
    executor = FakeExecutor(
        num_pages=64,
        page_size=16,
        max_slots=16,
        context_length=512,
        vocab_size=VOCAB,
        step_time_s=step_time_s,
    )
    with create_endpoint() as endpoint:
        channel = CoreChannel(endpoint)
        core = EngineCore(config, executor, channel)
        thread = threading.Thread(target=core.run)
        thread.start()
        try:
            yield endpoint, core
        finally:
            core.stop()
            thread.join(10)
            channel.close()
            assert not thread.is_alive()


class Frontend:
    """Collects what one frontend is sent."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.tokens: dict[int, list[int]] = {}
        self.ended: dict[int, str] = {}
        self.others: list[object] = []
        self.num_messages = 0
        self.channel = FrontendChannel(endpoint, self._on_message)

    def _on_message(self, message: object) -> None:
        self.num_messages += 1
        if isinstance(message, EngineCoreOutputs):
            for request_id, token in zip(message.request_ids, message.token_ids, strict=True):
                self.tokens.setdefault(request_id, []).append(token)
            for done in message.finished:
                self.ended[done.request_id] = done.finish_reason
        elif isinstance(message, RequestFailed):
            self.ended[message.request_id] = message.code
        else:
            self.others.append(message)

    def ask(self, request_id: int, prompt: list[int], max_tokens: int | None = None) -> None:
        params = SamplingParams(max_tokens=max_tokens)
        self.channel.send(EngineCoreRequest(request_id, np.array(prompt, np.int32), params))

    async def until(self, condition) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.002)


@pytest.mark.parametrize("overlap", [True, False])
def test_two_frontends_with_the_same_ids_each_get_their_own(overlap: bool) -> None:
    async def talk(endpoint: Endpoint) -> None:
        ones, others = Frontend(endpoint), Frontend(endpoint)
        for i in range(20):
            ones.ask(i, [1, i], 20)
            others.ask(i, [2, i], 20)
        await ones.until(lambda: len(ones.ended) == 20 and len(others.ended) == 20)
        for i in range(20):
            assert ones.tokens[i] == expected_tokens([1, i], 20, vocab_size=VOCAB)
            assert others.tokens[i] == expected_tokens([2, i], 20, vocab_size=VOCAB)
        # A step is one message, however many requests it served.
        assert ones.num_messages < 20 * 20 / 2
        ones.channel.close()
        others.channel.close()

    with running_core(enable_overlap=overlap) as (endpoint, _):
        asyncio.run(talk(endpoint))


def test_ready_says_what_there_is_and_control_answers() -> None:
    async def talk(endpoint: Endpoint) -> None:
        frontend = Frontend(endpoint)
        await frontend.until(lambda: frontend.others)
        ready = frontend.others[0]
        assert isinstance(ready, Ready)
        assert (ready.context_length, ready.max_total_tokens) == (512, 1024)
        frontend.ask(0, list(range(40)), 2)
        await frontend.until(lambda: 0 in frontend.ended)
        frontend.channel.send(ControlRequest(7, "flush_cache"))
        frontend.channel.send(ControlRequest(8, "make_coffee"))
        await frontend.until(lambda: len(frontend.others) == 3)
        flushed, refused = frontend.others[1:]
        assert isinstance(flushed, ControlReply) and isinstance(refused, ControlReply)
        assert flushed.call_id == 7 and flushed.error is None
        assert flushed.stats is not None and flushed.stats.num_free_pages == 64
        assert "make_coffee" in (refused.error or "")
        frontend.channel.close()

    with running_core() as (endpoint, _):
        asyncio.run(talk(endpoint))


def test_aborted_and_refused_requests_end_and_the_core_is_empty() -> None:
    async def talk(endpoint: Endpoint) -> None:
        frontend = Frontend(endpoint)
        frontend.ask(0, [1], None)
        frontend.ask(1, [1] * 512)
        await frontend.until(lambda: frontend.tokens.get(0) and 1 in frontend.ended)
        assert frontend.ended[1] == "context_length_exceeded"
        frontend.channel.send(AbortRequests([0, 99]))
        frontend.channel.send(ControlRequest(1, "stats"))
        await frontend.until(lambda: len(frontend.others) == 2)
        reply = frontend.others[1]
        assert isinstance(reply, ControlReply) and reply.stats is not None
        assert reply.stats.num_running == reply.stats.num_waiting == 0
        frontend.channel.close()

    with running_core(step_time_s=0.005) as (endpoint, _):
        asyncio.run(talk(endpoint))


def test_a_frontend_that_vanishes_takes_its_requests_along() -> None:
    async def talk(endpoint: Endpoint) -> None:
        gone, stays = Frontend(endpoint), Frontend(endpoint)
        gone.ask(0, [1], None)
        await gone.until(lambda: gone.tokens)
        gone.channel.close()
        stats = []

        async def num_running() -> int:
            stays.channel.send(ControlRequest(1, "stats"))
            count = len(stays.others)
            await stays.until(lambda: len(stays.others) > count)
            stats.append(stays.others[-1].stats)
            return stats[-1].num_running

        deadline = time.monotonic() + 10
        while await num_running():
            assert time.monotonic() < deadline
        assert stats[-1].output_tokens_total < 511
        stays.channel.close()

    with running_core(step_time_s=0.02) as (endpoint, _):
        asyncio.run(talk(endpoint))
