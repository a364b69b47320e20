"""What the engine's door hands out for a request, and the pieces a request is sent as."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from hpcserve.engine.open_request import OpenRequest
from hpcserve.errors import GrammarError, QueueFullError, RequestAbortedError, RequestError
from hpcserve.ipc.messages import RequestFailed
from hpcserve.outputs import RequestOutput
from hpcserve.sampling_params import SamplingParams

#: Weyl constant (2^64 / golden ratio): spreads the seeds of a request's answers.
_SEED_STRIDE = 0x9E3779B97F4A7C15


class RequestStream:
    """A running request: an async iterator of news (RequestOutput with deltas).

    Whoever leaves it early calls `abort`; a stream that has ended ignores that.
    """

    def __init__(self, request: OpenRequest, close: Callable[[RequestStream], None]) -> None:
        self.request = request
        #: Like `take`, at less cost; see there. An attribute, since it is called for every token.
        self.take_text = request.take_text
        self._close = close
        self._waiter: asyncio.Future[None] | None = None
        request.notify = self._wake

    def __aiter__(self) -> RequestStream:
        return self

    async def __anext__(self) -> RequestOutput:
        while (news := self.request.take()) is None:
            if self.request.finished:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return news

    async def result(self) -> RequestOutput:
        """All of a request that does not stream."""
        return await self.__anext__()

    def listen(self, on_news: Callable[[], None]) -> None:
        """Instead of iterating: call `on_news` when `take` has something, not again until it took
        it. It runs while a step is taken in, and must not take from within."""
        self.request.notify = on_news

    @property
    def failed(self) -> bool:
        """Whether it ended with an error, which `take` raises after the last news."""
        return self.request.error is not None

    def take(self) -> RequestOutput | None:
        """News that are there now, or None. Raises the request's error once its news are out."""
        return self.request.take()

    def abort(self) -> None:
        """Nobody wants it any more. Its iterator then ends."""
        self._close(self)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def params_of_answer(params: SamplingParams, index: int) -> SamplingParams:
    """The parameters of one answer: a seed of its own, derived from the request's."""
    if params.n == 1:
        return params
    seed = params.seed
    if seed is not None:
        seed = (seed + index * _SEED_STRIDE) % 2**64
    return msgspec.structs.replace(params, n=1, seed=seed)


_FAILURES: dict[str, type[RequestError]] = {
    "invalid_grammar": GrammarError,
    "queue_full": QueueFullError,
    "request_aborted": RequestAbortedError,
}


def request_error(message: RequestFailed) -> RequestError:
    error = _FAILURES.get(message.code, RequestError)(message.message)
    error.code = message.code
    return error
