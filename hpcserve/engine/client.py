"""THE door to the engine: server, batch and `LLM` all come through here.

An EngineClient lives on one asyncio event loop. It checks requests, gives them their ids, sends
them to the core, and turns what comes back into text. A request ends in exactly one way: a
finish reason, or one error of errors.py.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

from hpcserve.config.engine import EngineConfig
from hpcserve.config.generation import sampling_defaults
from hpcserve.engine.control_calls import ControlCalls
from hpcserve.engine.controls import EngineControls
from hpcserve.engine.model_folder import load_tokenizer, with_model_folder
from hpcserve.engine.observer import EngineObserver
from hpcserve.engine.open_request import OpenRequest
from hpcserve.engine.output_processor import OutputProcessor
from hpcserve.engine.pace import Pace
from hpcserve.engine.prompt_check import checked_prompt
from hpcserve.engine.replica import Replica, ReplicaStatus
from hpcserve.engine.replica_set import ReplicaEvents, ReplicaSet
from hpcserve.engine.request_stream import RequestStream, params_of_answer, request_error
from hpcserve.engine.supervisor import CORE_MODULE
from hpcserve.engine.supported_layout import check_layout
from hpcserve.errors import (
    EngineDeadError,
    EngineError,
    HpcserveError,
    InvalidParameterError,
)
from hpcserve.ipc.endpoints import Endpoint
from hpcserve.ipc.messages import (
    AbortRequests,
    ControlReply,
    EngineCoreOutputs,
    EngineCoreRequest,
    Int32Array,
    Ready,
    RequestFailed,
)
from hpcserve.outputs import RequestOutput
from hpcserve.sampling_params import SamplingParams
from hpcserve.tokenizer.tokenizer import Tokenizer

# Faces import the engine from here alone.
__all__ = [
    "CORE_MODULE",
    "EngineClient",
    "OpenRequest",
    "ReplicaStatus",
    "RequestStream",
]


class EngineClient(EngineControls, AbstractAsyncContextManager["EngineClient"]):
    """Made by `start` (a core of its own) or `connect` (a core that runs)."""

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        config: EngineConfig | None = None,
        *,
        module: str = CORE_MODULE,
    ) -> None:
        self.config = config or EngineConfig()
        self._tokenizer = tokenizer
        #: Sampling parameters for requests that do not say them, of the model's own.
        self.sampling_defaults = sampling_defaults(self.config.model)
        self._processor = OutputProcessor()
        self._streams: dict[str, RequestStream] = {}
        self._names = itertools.count()
        #: Name of a request -> the replica that works on it.
        self._homes: dict[str, Replica] = {}
        self._calls = ControlCalls()
        self._admits = True
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        events = ReplicaEvents(self._on_message, self._on_lost, self._on_dead)
        self._replicas = ReplicaSet(self.config, events, module=module)

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
        """Start a core process for each replica and wait until they answer.

        Raises EngineStartError, ConfigError, or ModelError where the model is to blame.
        """
        return await cls._start(config, lambda: tokenizer, module, timeout_s)

    @classmethod
    async def open(
        cls, config: EngineConfig, *, module: str = CORE_MODULE, timeout_s: float | None = None
    ) -> EngineClient:
        """`start` from what a user wrote: finds the model's folder and reads its tokenizer.

        Raises also ModelNotFoundError and TokenizerError.
        """
        config = with_model_folder(config)
        return await cls._start(config, lambda: load_tokenizer(config), module, timeout_s)

    @classmethod
    async def _start(
        cls,
        config: EngineConfig,
        read_tokenizer: Callable[[], Tokenizer],
        module: str,
        timeout_s: float | None,
    ) -> EngineClient:
        check_layout(config)
        client = cls(None, config, module=module)
        async with client._closed_on_failure():
            # The cores have the longer way to go: they are started first.
            starting = asyncio.ensure_future(client._replicas.start())
            try:
                await asyncio.sleep(0)
                client._tokenizer = await asyncio.to_thread(read_tokenizer)
                await starting
            finally:
                starting.cancel()
                await asyncio.wait({starting})
            await client._wait_ready(timeout_s)
        return client

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
        client = cls(tokenizer, config)
        async with client._closed_on_failure():
            client._replicas.connect(endpoint)
            await client._wait_ready(timeout_s)
        return client

    async def _wait_ready(self, timeout_s: float | None) -> None:
        await self._replicas.wait_ready(timeout_s)
        self.tokenizer.max_tokens = self.ready.context_length

    @asynccontextmanager
    async def _closed_on_failure(self) -> AsyncIterator[None]:
        """A start that fails, or is cancelled, leaves no process behind."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.close)
            yield
            stack.pop_all()

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's; raises EngineError before the start has read it."""
        if self._tokenizer is None:
            raise EngineError("the tokenizer has not been read yet")
        return self._tokenizer

    @property
    def ready(self) -> Ready:
        """What the first core said of itself: context length, vocabulary, size of the KV cache."""
        return self._replicas.ready

    @property
    def replicas(self) -> list[Replica]:
        """The engine's replicas, as they are now."""
        return self._replicas.members

    @property
    def dead(self) -> EngineDeadError | None:
        """Why the engine is gone, if it is."""
        return self._replicas.dead

    @property
    def died(self) -> asyncio.Event:
        """Set when the engine is gone."""
        return self._replicas.died

    @property
    def num_open(self) -> int:
        """Requests that have not ended."""
        return len(self._streams)

    @property
    def pace(self) -> Pace:
        """How fast answers are made."""
        return self._processor.pace

    @property
    def last_token_s(self) -> float:
        """When the engine gave a token last, of any request; by time.perf_counter."""
        return self._processor.last_token_s

    def observe(self, observer: EngineObserver) -> None:
        """Tell `observer` how requests fare from now on."""
        self._processor.observer = observer

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
        self._on_dead(EngineDeadError("the engine was closed"))
        await self._replicas.close()

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
        if not -(2**63) <= priority < 2**63:
            raise InvalidParameterError("priority", f"{priority} does not fit in 64 bits")
        if name is None:
            # Users may have taken one of these for themselves.
            numbered = (f"request-{number}" for number in self._names)
            name = next(one for one in numbered if one not in self._streams)
        if name in self._streams:
            raise InvalidParameterError("rid", f"{name!r} is running already")
        request = OpenRequest(name, prompt_token_ids, params, self.tokenizer, streams=streams)
        stream = RequestStream(request, self._close_request)
        replica = self._replicas.choose(ids)
        self._homes[name] = replica
        request.replica = replica.index
        replica.num_open += 1
        self._streams[name] = stream
        self._idle.clear()
        now_s = time.time()
        for answer in self._processor.open(request):
            child = params_of_answer(params, answer.index)
            replica.send(EngineCoreRequest(answer.request_id, ids, child, priority, now_s))
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
        return checked_prompt(prompt_token_ids, params, self.ready)

    def check_admits(self) -> None:
        """Raise EngineError where no request is taken: the engine is gone, or drains."""
        self._replicas.check_alive()
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

    # ------------------------------------------------------------ what the engine says

    def _on_message(
        self, replica: Replica, message: EngineCoreOutputs | RequestFailed | ControlReply
    ) -> None:
        if isinstance(message, EngineCoreOutputs):
            stopped = self._processor.process(message, replica.index)
            if stopped:
                replica.send(AbortRequests(stopped))
            self._forget_finished()
        elif isinstance(message, RequestFailed):
            self._on_failed(message)
        else:
            self._calls.answer(replica, message)

    def _forget_finished(self) -> None:
        for name in self._processor.take_finished():
            del self._streams[name]
            self._homes.pop(name).num_open -= 1
        if not self._streams:
            self._idle.set()

    def _on_failed(self, message: RequestFailed) -> None:
        request = self._processor.request_of(message.request_id)
        if request is None:
            return
        self._close_request(self._streams[request.name], request_error(message))

    def _close_request(self, stream: RequestStream, error: HpcserveError | None = None) -> None:
        running = self._processor.close(stream.request, error)
        if running and not self._closed and (home := self._homes.get(stream.request.name)):
            home.send(AbortRequests(running))
        self._forget_finished()

    def _on_lost(self, replica: Replica, error: EngineDeadError) -> None:
        """What one replica of several worked on has failed."""
        for name in [name for name, home in self._homes.items() if home is replica]:
            self._processor.close(self._streams[name].request, EngineDeadError(str(error)))
        self._forget_finished()
        self._calls.give_up(replica)

    def _on_dead(self, error: EngineDeadError) -> None:
        """Nothing will be answered any more."""
        for stream in list(self._streams.values()):
            self._processor.close(stream.request, EngineDeadError(str(error)))
        self._forget_finished()
        self._calls.fail(error)

    async def __aexit__(self, *_: Any) -> None:
        await self.close()
