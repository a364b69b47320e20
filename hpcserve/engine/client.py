"""THE door to the engine: server, batch and `LLM` all come through here.

An EngineClient lives on one asyncio event loop. It checks requests, gives them their ids, sends
them to the core, and turns what comes back into text. A request ends in exactly one way: a
finish reason, or one error of errors.py.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np

from hpcserve import envs
from hpcserve.config.engine import EngineConfig
from hpcserve.engine.model_folder import load_tokenizer, with_model_folder
from hpcserve.engine.output_processor import OpenRequest, OutputProcessor
from hpcserve.engine.request_stream import RequestStream, params_of_answer, request_error
from hpcserve.engine.supervisor import CORE_MODULE, CoreProcess, exit_reason, start_error
from hpcserve.errors import (
    ContextLengthError,
    EngineDeadError,
    EngineError,
    EngineStartError,
    HpcserveError,
    InvalidParameterError,
)
from hpcserve.ipc.channel import FrontendChannel
from hpcserve.ipc.endpoints import Endpoint, OwnedEndpoint, create_endpoint
from hpcserve.ipc.messages import (
    AbortRequests,
    ControlReply,
    ControlRequest,
    CoreMessage,
    EngineCoreOutputs,
    EngineCoreRequest,
    EngineDead,
    Int32Array,
    Ready,
    RequestFailed,
    SchedulerStats,
)
from hpcserve.outputs import RequestOutput
from hpcserve.sampling_params import SamplingParams
from hpcserve.tokenizer.tokenizer import Tokenizer

# Faces import the engine from here alone.
__all__ = ["CORE_MODULE", "EngineClient", "RequestStream"]

_CONTROL_TIMEOUT_S = 30.0
#: The core's last words travel by another way than the news of its end: they may come later.
_LAST_WORDS_S = 0.2


class EngineClient:
    """Made by `start` (a core of its own) or `connect` (a core that runs)."""

    def __init__(
        self, endpoint: Endpoint, tokenizer: Tokenizer, config: EngineConfig | None = None
    ) -> None:
        self.config = config or EngineConfig()
        self.tokenizer = tokenizer
        self.dead: EngineDeadError | None = None
        #: Set when the engine is gone.
        self.died = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[Ready] = self._loop.create_future()
        self._processor = OutputProcessor()
        self._streams: dict[str, RequestStream] = {}
        self._names = itertools.count()
        self._calls: dict[int, asyncio.Future[ControlReply]] = {}
        self._call_ids = itertools.count()
        self._admits = True
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._process: CoreProcess | None = None
        self._owned: OwnedEndpoint | None = None
        self._channel = FrontendChannel(endpoint, self._on_message)

    # ------------------------------------------------------------ life

    @classmethod
    async def start(
        cls,
        config: EngineConfig,
        tokenizer: Tokenizer,
        *,
        module: str = CORE_MODULE,
        timeout_s: float | None = None,
    ) -> EngineClient:
        """Start a core process and wait until it answers.

        Raises EngineStartError, or ModelError where the model is to blame.
        """
        owned = create_endpoint()
        client = cls(owned.endpoint, tokenizer, config)
        client._owned = owned
        try:
            client._attach(CoreProcess.spawn(config, owned.endpoint, module=module))
            await client._wait_ready(timeout_s)
        except BaseException:
            await client.close()
            raise
        return client

    @classmethod
    async def open(
        cls, config: EngineConfig, *, module: str = CORE_MODULE, timeout_s: float | None = None
    ) -> EngineClient:
        """`start` from what a user wrote: finds the model's folder and reads its tokenizer.

        Raises also ModelNotFoundError and TokenizerError.
        """
        config = with_model_folder(config)
        return await cls.start(config, load_tokenizer(config), module=module, timeout_s=timeout_s)

    @classmethod
    async def connect(
        cls,
        endpoint: Endpoint,
        tokenizer: Tokenizer,
        config: EngineConfig | None = None,
        *,
        timeout_s: float | None = None,
    ) -> EngineClient:
        """Use a core that somebody else started, and leave it running afterwards."""
        client = cls(endpoint, tokenizer, config)
        try:
            await client._wait_ready(timeout_s)
        except BaseException:
            await client.close()
            raise
        return client

    @property
    def ready(self) -> Ready:
        """What the core said of itself: context length, vocabulary, size of the KV cache."""
        return self._ready.result()

    @property
    def is_alive(self) -> bool:
        return self.dead is None and not self._closed

    @property
    def num_open(self) -> int:
        """Requests that have not ended."""
        return len(self._streams)

    async def drain(self, timeout_s: float) -> int:
        """Take no more requests and let the running ones end; abort those that take longer.

        Returns how many were aborted.
        """
        self._admits = False
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except asyncio.TimeoutError:
            return self.abort_all()
        return 0

    async def close(self) -> None:
        """End everything: open requests fail, a core that was started here stops."""
        if self._closed:
            return
        self._closed = True
        self._fail_all(EngineDeadError("the engine was closed"))
        if self._process is not None and self.dead is None and self._ready.done():
            self._channel.send(ControlRequest(next(self._call_ids), "shutdown"))
        self._channel.close()
        if self._process is not None:
            stop = self._process.stop if self._ready.done() else self._process.kill
            await asyncio.to_thread(stop)
        if self._owned is not None:
            self._owned.remove()
        if self._ready.done() and not self._ready.cancelled():
            self._ready.exception()  # seen: whoever waited was told

    # ------------------------------------------------------------ requests

    def submit(
        self,
        prompt_token_ids: Sequence[int] | Int32Array,
        params: SamplingParams,
        *,
        priority: int = 0,
        name: str | None = None,
        streams: bool = True,
    ) -> RequestStream:
        """Check a request and send it.

        name: what users call it; `abort` takes it.  streams: False gives one output at the end,
        and costs next to nothing per token.
        Raises RequestError where it cannot run, EngineError where there is no engine.
        """
        ids = self.check(prompt_token_ids, params)
        name = f"request-{next(self._names)}" if name is None else name
        if name in self._streams:
            raise InvalidParameterError("rid", f"{name!r} is running already")
        request = OpenRequest(name, prompt_token_ids, params, self.tokenizer, streams=streams)
        stream = RequestStream(request, self._close_request)
        self._streams[name] = stream
        self._idle.clear()
        now_s = time.time()
        for answer in self._processor.open(request):
            child = params_of_answer(params, answer.index)
            self._channel.send(EngineCoreRequest(answer.request_id, ids, child, priority, now_s))
        return stream

    async def generate(
        self,
        prompt_token_ids: Sequence[int] | Int32Array,
        params: SamplingParams,
        *,
        priority: int = 0,
        name: str | None = None,
    ) -> AsyncIterator[RequestOutput]:
        """Deltas as they come. Closing the generator, or cancelling its task, aborts."""
        stream = self.submit(prompt_token_ids, params, priority=priority, name=name)
        try:
            async for output in stream:
                yield output
        finally:
            stream.abort()

    async def complete(
        self,
        prompt_token_ids: Sequence[int] | Int32Array,
        params: SamplingParams,
        *,
        priority: int = 0,
        name: str | None = None,
    ) -> RequestOutput:
        """The whole output at once. Cancelling the task aborts."""
        stream = self.submit(prompt_token_ids, params, priority=priority, name=name, streams=False)
        try:
            return await stream.result()
        finally:
            stream.abort()

    def check(
        self, prompt_token_ids: Sequence[int] | Int32Array, params: SamplingParams
    ) -> Int32Array:
        """The prompt as it is sent. Raises what `submit` raises for a request that cannot run."""
        self.check_admits()
        ready = self.ready
        params.validate(vocab_size=ready.vocab_size)
        num_tokens = len(prompt_token_ids)
        if num_tokens == 0:
            raise InvalidParameterError("prompt", "it is empty")
        if num_tokens + (params.max_tokens or 1) > ready.context_length:
            raise ContextLengthError(num_tokens, params.max_tokens, ready.context_length)
        try:
            ids = np.asarray(prompt_token_ids, dtype=np.int32)
        except (OverflowError, ValueError, TypeError) as error:
            raise InvalidParameterError("prompt", f"no list of token ids: {error}") from error
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= ready.vocab_size:
            raise InvalidParameterError(
                "prompt",
                f"token id {low if low < 0 else high} is out of range "
                f"(the vocabulary has {ready.vocab_size})",
            )
        return ids

    def check_admits(self) -> None:
        """Raise EngineError where no request is taken: the engine is gone, or drains."""
        self._check_alive()
        if self._closed or not self._admits:
            raise EngineError("the server is shutting down and takes no more requests")

    def abort(self, name: str) -> bool:
        """End a request by its name; its reader gets the finish reason abort."""
        stream = self._streams.get(name)
        if stream is None:
            return False
        stream.abort()
        return True

    def abort_all(self) -> int:
        """End every request. Returns how many."""
        return sum(self.abort(name) for name in list(self._streams))

    # ------------------------------------------------------------ control

    async def stats(self) -> SchedulerStats:
        reply = await self._call("stats")
        if reply.stats is None:
            raise EngineError("the engine gave no statistics")
        return reply.stats

    async def flush_cache(self) -> None:
        """Drop every page of the KV cache that no request uses."""
        await self._call("flush_cache")

    async def _call(self, kind: str) -> ControlReply:
        self._check_alive()
        call_id = next(self._call_ids)
        self._calls[call_id] = self._loop.create_future()
        self._channel.send(ControlRequest(call_id, kind))
        try:
            reply = await asyncio.wait_for(self._calls[call_id], _CONTROL_TIMEOUT_S)
        except asyncio.TimeoutError:
            raise EngineError(
                f"the engine did not answer {kind} in {_CONTROL_TIMEOUT_S:.0f} s"
            ) from None
        finally:
            del self._calls[call_id]
        if reply.error is not None:
            raise EngineError(f"{kind}: {reply.error}")
        return reply

    # ------------------------------------------------------------ inside

    def _on_message(self, message: CoreMessage) -> None:
        if isinstance(message, EngineCoreOutputs):
            stopped = self._processor.process(message)
            if stopped:
                self._channel.send(AbortRequests(stopped))
            self._forget_finished()
        elif isinstance(message, RequestFailed):
            self._on_failed(message)
        elif isinstance(message, ControlReply):
            call = self._calls.get(message.call_id)
            if call is not None and not call.done():
                call.set_result(message)
        elif isinstance(message, Ready):
            if not self._ready.done():
                self._ready.set_result(message)
        else:
            self._on_dead(message)

    def _forget_finished(self) -> None:
        for name in self._processor.take_finished():
            del self._streams[name]
        if not self._streams:
            self._idle.set()

    def _on_failed(self, message: RequestFailed) -> None:
        request = self._processor.request_of(message.request_id)
        if request is None:
            return
        self._close_request(self._streams[request.name], request_error(message))

    def _close_request(self, stream: RequestStream, error: HpcserveError | None = None) -> None:
        running = self._processor.close(stream.request, error)
        if running and self.dead is None and not self._closed:
            self._channel.send(AbortRequests(running))
        self._forget_finished()

    def _on_dead(self, message: EngineDead) -> None:
        if self.dead is not None or self._closed:
            return
        self.dead = EngineDeadError(f"the engine is gone ({message.role}): {message.reason}")
        self.died.set()
        if not self._ready.done():
            self._ready.set_exception(start_error(message))
        self._fail_all(self.dead)

    def _fail_all(self, error: EngineDeadError) -> None:
        for stream in list(self._streams.values()):
            self._processor.close(stream.request, EngineDeadError(str(error)))
        self._forget_finished()
        for call in self._calls.values():
            if not call.done():
                call.set_exception(EngineDeadError(str(error)))

    def _check_alive(self) -> None:
        if self.dead is not None:
            raise EngineDeadError(str(self.dead))

    def _attach(self, process: CoreProcess) -> None:
        self._process = process

        def on_exit(exit_code: int) -> None:
            dead = EngineDead("core", exit_reason(exit_code), exit_code if exit_code > 0 else 1)
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(
                    self._loop.call_later, _LAST_WORDS_S, self._on_dead, dead
                )

        process.on_exit(on_exit)

    async def _wait_ready(self, timeout_s: float | None) -> None:
        limit_s = envs.HPCSERVE_START_TIMEOUT_S.get() if timeout_s is None else timeout_s
        try:
            await asyncio.wait_for(asyncio.shield(self._ready), limit_s)
        except asyncio.TimeoutError:
            raise EngineStartError(
                f"the engine was not ready after {limit_s:g} s; see its log above, or allow more "
                f"with {envs.HPCSERVE_START_TIMEOUT_S.name}"
            ) from None

    async def __aenter__(self) -> EngineClient:
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self.close()
