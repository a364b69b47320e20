"""A core without a model that gives every running request a token per step, at a fixed pace.

`python -m hpcserve.bench.flood_core` is one as a process, to stand behind a real HTTP process. The
order's --target-itl is the time of a step; a step that is late is not caught up.
"""

from __future__ import annotations

import time

from hpcserve.config.engine import EngineConfig
from hpcserve.engine.core_main import run_order
from hpcserve.ipc.channel import CoreChannel
from hpcserve.ipc.messages import (
    AbortRequests,
    ControlReply,
    EngineCoreOutputs,
    EngineCoreRequest,
    FinishedRequest,
    FrontendMessage,
    Ready,
)

_CONTEXT_LENGTH = 1 << 20
_IDLE_MS = 100
_VOCAB_SIZE = 100_000
#: Ids that are words of their own in the made-up tokenizer of stand_in.py.
_FIRST_TOKEN, _NUM_TOKENS = 10_000, 1000


class FloodCore:
    """step_s: seconds between steps."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        #: By frontend: tokens that each of its requests still gets.
        self._left: dict[bytes, dict[int, int]] = {}
        self._stopping = False

    def run(self, endpoint: str) -> None:
        """Serve until told to shut down."""
        channel = CoreChannel(endpoint)
        try:
            channel.broadcast(Ready(_CONTEXT_LENGTH, _VOCAB_SIZE, 1 << 20, 16, [0], "none", {}))
            due = time.monotonic()
            while not self._stopping:
                for frontend, message in channel.receive(0 if self._left else _IDLE_MS):
                    self._handle(channel, frontend, message)
                self._step(channel)
                now = time.monotonic()
                due = max(now, due + self._step_s)
                time.sleep(due - now)
        finally:
            channel.close()

    def _handle(self, channel: CoreChannel, frontend: bytes, message: FrontendMessage) -> None:
        if isinstance(message, EngineCoreRequest):
            left = self._left.setdefault(frontend, {})
            left[message.request_id] = message.params.max_tokens or 1
        elif isinstance(message, AbortRequests):
            for request_id in message.request_ids:
                self._left.get(frontend, {}).pop(request_id, None)
        else:
            self._stopping = message.kind == "shutdown"
            channel.send(frontend, ControlReply(message.call_id))

    def _step(self, channel: CoreChannel) -> None:
        for frontend, left in list(self._left.items()):
            ids = list(left)
            tokens = [_FIRST_TOKEN + (number + left[number]) % _NUM_TOKENS for number in ids]
            ended = [number for number in ids if left[number] == 1]
            finished = [FinishedRequest(number, "length", None, 0) for number in ended]
            if ids and not channel.send(frontend, EngineCoreOutputs(ids, tokens, finished)):
                left.clear()
            for number in left:
                left[number] -= 1
            for number in ended:
                left.pop(number, None)
            if not left:
                del self._left[frontend]


def _run(config: EngineConfig, endpoint: str) -> None:
    step_ms = config.scheduler.target_itl or 0.0
    FloodCore(step_ms / 1000).run(endpoint)


if __name__ == "__main__":
    run_order(_run)
