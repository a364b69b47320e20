"""The engine's core in this process, fed by a script instead of frontends.

What is left out is everything between processes: HTTP, ZMQ, text. What remains is the scheduler
and the steps, so the figures show what the engine itself can do.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterator

import numpy as np

from hpcserve.bench.record import RequestRecord
from hpcserve.bench.request import BenchRequest
from hpcserve.engine.core import EngineCore
from hpcserve.ipc.channel import CoreChannel
from hpcserve.ipc.messages import (
    ControlRequest,
    CoreMessage,
    EngineCoreOutputs,
    EngineCoreRequest,
    FrontendMessage,
    RequestFailed,
)
from hpcserve.sampling_params import SamplingParams

_FRONTEND = b"bench"
_SHUTDOWN = ControlRequest(0, "shutdown")

Script = Iterator[list[FrontendMessage]]


class ScriptedChannel(CoreChannel):
    """Gives the core the script's next messages whenever nothing is open any more."""

    def __init__(self, runs: Iterator[list[BenchRequest]]) -> None:
        # No socket: the base class is only what the core expects to hold.
        self._script = self._run_all(runs)
        self._open: dict[int, tuple[RequestRecord, array[float]]] = {}
        self._start = 0.0
        self.results: list[list[RequestRecord]] = []

    def receive(self, timeout_ms: int) -> list[tuple[bytes, FrontendMessage]]:
        if self._open:
            return []
        return [(_FRONTEND, message) for message in next(self._script, [_SHUTDOWN])]

    def send(self, frontend: bytes, message: CoreMessage) -> bool:
        now = time.monotonic() - self._start
        if isinstance(message, EngineCoreOutputs):
            self._take(message, now)
        elif isinstance(message, RequestFailed):
            record, _ = self._open.pop(message.request_id)
            record.error, record.error_text, record.end_s = message.code, message.message, now
        return True

    def broadcast(self, message: CoreMessage) -> None:
        """Ready has no audience here."""

    def close(self) -> None:
        """There is nothing to free."""

    def _run_all(self, runs: Iterator[list[BenchRequest]]) -> Script:
        for requests in runs:
            messages: list[FrontendMessage] = [
                _message(number, request) for number, request in enumerate(requests)
            ]
            self._open = {
                number: (_record(number, request), array("d"))
                for number, request in enumerate(requests)
            }
            self.results.append([record for record, _ in self._open.values()])
            # The next line of the script runs only when all of these have ended.
            self._start = time.monotonic()
            yield messages

    def _take(self, message: EngineCoreOutputs, now: float) -> None:
        for request_id in message.request_ids:
            self._open[request_id][1].append(now)
        for finished in message.finished:
            record, times = self._open.pop(finished.request_id)
            record.end_s = now
            record.chunk_times = times.tobytes()
            record.output_tokens = len(times)
            record.cached_tokens = finished.num_cached_tokens
            record.finish_reason = finished.finish_reason


def run_core_alone(core: EngineCore, channel: ScriptedChannel) -> list[list[RequestRecord]]:
    """The records of every run of the script. The executor is shut down afterwards."""
    core.run()
    return channel.results


def _message(number: int, request: BenchRequest) -> EngineCoreRequest:
    ids = np.array(request.prompt_token_ids, dtype=np.int32)
    return EngineCoreRequest(number, ids, sampling_of(request))


def _record(number: int, request: BenchRequest) -> RequestRecord:
    num_prompt = len(request.prompt_token_ids or ())
    return RequestRecord(number, scheduled_s=0.0, sent_s=0.0, prompt_tokens=num_prompt)


def sampling_of(request: BenchRequest) -> SamplingParams:
    """Greedy, for as many tokens as the request asks."""
    return SamplingParams(
        max_tokens=request.max_tokens, temperature=0.0, ignore_eos=request.ignore_eos
    )
