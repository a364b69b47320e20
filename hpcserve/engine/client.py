"""THE door to the engine: server, batch and `LLM` all come through here.

An EngineClient lives on one asyncio event loop. It checks requests, gives them their ids, sends
them to the core, and turns what comes back into text. A request ends in exactly one way: a
finish reason, or one error of errors.py.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np

from hpcserve import envs
from hpcserve.config.engine import EngineConfig
from hpcserve.distributed.topology import Topology
from hpcserve.engine.model_folder import load_tokenizer, with_model_folder
from hpcserve.engine.nodes import Nodes
from hpcserve.engine.output_processor import OpenRequest, OutputProcessor
from hpcserve.engine.replica import Replica, ReplicaStatus
from hpcserve.engine.request_stream import RequestStream, params_of_answer, request_error
from hpcserve.engine.router import PrefixRouter
from hpcserve.engine.supervisor import CORE_MODULE, start_error
from hpcserve.engine.supported_layout import check_layout
from hpcserve.errors import (
    ContextLengthError,
    EngineDeadError,
    EngineError,
    EngineStartError,
    HpcserveError,
    InvalidParameterError,
)
from hpcserve.ipc.endpoints import Endpoint
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
from hpcserve.log import get_logger
from hpcserve.outputs import RequestOutput
from hpcserve.sampling_params import SamplingParams
from hpcserve.scheduler.lockstep import total_stats
from hpcserve.tokenizer.tokenizer import Tokenizer

# Faces import the engine from here alone.
__all__ = ["CORE_MODULE", "EngineClient", "ReplicaStatus", "RequestStream"]

logger = get_logger(__name__)

_CONTROL_TIMEOUT_S = 30.0
#: Writing a trace takes longer than anything else.
_PROFILE_TIMEOUT_S = 600.0
#: A core's last words travel by another way than the news of its end: they may come later.
_LAST_WORDS_S = 0.2
#: Longest pause before a replica that keeps dying is started once more.
_RESTART_MOST_S = 60.0


class _Call:
    """A control request that several replicas answer, each by its index."""

    def __init__(self, done: asyncio.Future[dict[int, ControlReply]], asked: set[int]) -> None:
        self.done = done
        self._missing = asked
        self._replies: dict[int, ControlReply] = {}

    def answer(self, index: int, reply: ControlReply) -> None:
        self._replies[index] = reply
        self.give_up(index)

    def give_up(self, index: int) -> None:
        """This replica's answer is here, or will not come."""
        self._missing.discard(index)
        if not self._missing and not self.done.done():
            self.done.set_result(self._replies)


class EngineClient:
    """Made by `start` (a core of its own) or `connect` (a core that runs)."""

    def __init__(self, tokenizer: Tokenizer, config: EngineConfig | None = None) -> None:
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
        #: Name of a request -> the replica that works on it.
        self._homes: dict[str, Replica] = {}
        #: By call: the answers so far, of how many replicas.
        self._calls: dict[int, _Call] = {}
        self._call_ids = itertools.count()
        self._admits = True
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._replicas: list[Replica] = []
        self._router = PrefixRouter()
        self._nodes: Nodes | None = None
        self._module = CORE_MODULE
        self._restarts: set[asyncio.Task[None]] = set()
        self._num_restarts: Counter[int] = Counter()

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

        Raises EngineStartError, or ModelError where the model is to blame.
        """
        check_layout(config)
        client = cls(tokenizer, config)
        client._module = module
        try:
            if config.parallel.nnodes > 1:
                client._nodes = Nodes(config, client._on_node_lost, client._on_core_ended)
                await client._nodes.wait()
            for index in range(config.parallel.num_cores):
                client._replicas.append(await client._spawn(index))
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
        client = cls(tokenizer, config)
        try:
            client._replicas.append(Replica(0, endpoint, client._on_message, owns_core=False))
            await client._wait_ready(timeout_s)
        except BaseException:
            await client.close()
            raise
        return client

    @property
    def ready(self) -> Ready:
        """What the first core said of itself: context length, vocabulary, size of the KV cache."""
        return self._ready.result()

    @property
    def replicas(self) -> list[Replica]:
        """The engine's replicas, as they are now."""
        return list(self._replicas)

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
        for task in self._restarts:
            task.cancel()
        shutdown = ControlRequest(next(self._call_ids), "shutdown")
        await asyncio.gather(*(replica.close(shutdown) for replica in self._replicas))
        if self._nodes is not None:
            self._nodes.close()
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
        replica = self._choose(ids)
        self._homes[name] = replica
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
        """Gauges and counters, summed over the replicas that live."""
        replies = (await self._call("stats")).values()
        stats = [reply.stats for reply in replies if reply.stats is not None]
        if not stats:
            raise EngineError("the engine gave no statistics")
        return total_stats(stats)

    async def replica_status(self) -> list[ReplicaStatus]:
        """How each replica is; those that are away give no gauges."""
        replies = await self._call("stats")
        topology = Topology(self.config.parallel)
        return [
            ReplicaStatus(
                one.index,
                one.state,
                one.num_open,
                self._num_restarts[one.index],
                topology.core_node(one.index),
                replies[one.index].stats if one.index in replies else None,
            )
            for one in self._replicas
        ]

    def drain_replica(self, index: int) -> None:
        """Give a replica no more requests; it is drained when its open ones have ended.

        Raises InvalidParameterError for one that there is not, EngineError where no other would
        take requests.
        """
        replica = self._replica(index)
        if not any(one.takes_requests for one in self._replicas if one is not replica):
            raise EngineError(f"replica {index} is the only one that takes requests")
        replica.draining = True

    def resume_replica(self, index: int) -> None:
        """Give a drained replica requests again.  Raises InvalidParameterError."""
        self._replica(index).draining = False

    def _replica(self, index: int) -> Replica:
        if not 0 <= index < len(self._replicas):
            last = len(self._replicas) - 1
            raise InvalidParameterError("index", f"there is no replica {index}; valid: 0 to {last}")
        return self._replicas[index]

    async def flush_cache(self) -> None:
        """Drop every page of the KV cache that no request uses."""
        await self._call("flush_cache")

    async def start_profile(self, folder: str) -> None:
        """Let every replica record a torch profiler trace. Raises EngineError where it cannot."""
        await self._call("start_profile", folder)

    async def stop_profile(self) -> list[str]:
        """The paths of the traces, which are written now. Raises EngineError where none is taken."""
        replies = await self._call("stop_profile", timeout_s=_PROFILE_TIMEOUT_S)
        return [reply.result for reply in replies.values()]

    async def _call(
        self, kind: str, argument: str = "", *, timeout_s: float = _CONTROL_TIMEOUT_S
    ) -> dict[int, ControlReply]:
        """Ask every replica that lives; one that ends meanwhile is not waited for."""
        self._check_alive()
        call_id = next(self._call_ids)
        asked = {one.index for one in self._replicas if one.ready is not None and one.dead is None}
        call = self._calls[call_id] = _Call(self._loop.create_future(), asked)
        for index in sorted(asked):
            self._replicas[index].send(ControlRequest(call_id, kind, argument))
        try:
            replies = await asyncio.wait_for(call.done, timeout_s)
        except asyncio.TimeoutError:
            raise EngineError(f"the engine did not answer {kind} in {timeout_s:.0f} s") from None
        finally:
            del self._calls[call_id]
        for reply in replies.values():
            if reply.error is not None:
                raise EngineError(f"{kind}: {reply.error}")
        return replies

    # ------------------------------------------------------------ inside

    async def _spawn(self, index: int) -> Replica:
        """Start a replica's core, here or on the node where its first rank is."""
        topology = Topology(self.config.parallel)
        if self._nodes is not None and topology.core_node(index) > 0:
            return Replica(index, await self._nodes.start_core(index), self._on_message)
        workers = None
        if self._nodes is not None and topology.spans_nodes(index):
            workers = await self._nodes.start_workers(index)
        return Replica.spawn(
            index, self.config, self._on_message, module=self._module, workers=workers
        )

    def _on_node_lost(self, node_rank: int, host: str) -> None:
        topology = Topology(self.config.parallel)
        for replica in list(self._replicas):
            nodes = {topology.place(rank).node_rank for rank in topology.replica(replica.index)}
            if node_rank in nodes:
                replica.lost(f"node {node_rank} ({host}) is gone")

    def _on_core_ended(self, dp_rank: int, exit_code: int, reason: str) -> None:
        self._loop.call_later(_LAST_WORDS_S, self._replicas[dp_rank].lost, reason, exit_code)

    def _choose(self, ids: Int32Array) -> Replica:
        loads = {one.index: one.num_open for one in self._replicas if one.takes_requests}
        if not loads:
            raise EngineError("no replica takes requests at the moment; try again later")
        return self._replicas[self._router.choose(ids, loads)]

    def _on_message(self, replica: Replica, message: CoreMessage) -> None:
        if isinstance(message, EngineCoreOutputs):
            stopped = self._processor.process(message)
            if stopped:
                replica.send(AbortRequests(stopped))
            self._forget_finished()
        elif isinstance(message, RequestFailed):
            self._on_failed(message)
        elif isinstance(message, ControlReply):
            if (call := self._calls.get(message.call_id)) is not None:
                call.answer(replica.index, message)
        elif isinstance(message, Ready):
            if not self._ready.done() and all(one.ready is not None for one in self._replicas):
                self._ready.set_result(self._replicas[0].ready or message)
        else:
            self._on_dead(replica, message)

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

    def _on_dead(self, replica: Replica, message: EngineDead) -> None:
        """A replica that served is started again while others serve; else it is the end."""
        if self.dead is not None or self._closed:
            return
        others = any(one.ready and not one.dead for one in self._replicas)
        if self._ready.done() and others:
            self._replace(replica, message)
            return
        self.dead = EngineDeadError(f"the engine is gone ({message.role}): {message.reason}")
        self.died.set()
        if not self._ready.done():
            self._ready.set_exception(start_error(message))
        self._fail_all(self.dead)

    def _replace(self, replica: Replica, message: EngineDead) -> None:
        text = f"replica {replica.index} is gone ({message.role}): {message.reason}"
        logger.error("%s; the others go on, it is started again", text)
        for name in [name for name, home in self._homes.items() if home is replica]:
            self._processor.close(self._streams[name].request, EngineDeadError(text))
        self._forget_finished()
        for call in self._calls.values():
            call.give_up(replica.index)
        self._router.forget(replica.index)
        task = asyncio.ensure_future(self._restart(replica))
        self._restarts.add(task)
        task.add_done_callback(self._restarts.discard)

    async def _restart(self, gone: Replica) -> None:
        """Put a new core in the place of one that is gone, after a pause that grows."""
        self._num_restarts[gone.index] += 1
        pause_s = min(_RESTART_MOST_S, 0.1 * 4 ** (self._num_restarts[gone.index] - 1))
        await gone.close(ControlRequest(next(self._call_ids), "shutdown"))
        await asyncio.sleep(pause_s)
        while True:
            try:
                new = await self._spawn(gone.index)
            except EngineStartError as error:
                logger.error("replica %d did not start again: %s", gone.index, error)
                await asyncio.sleep(pause_s)
            else:
                new.draining = gone.draining
                self._replicas[gone.index] = new
                return

    def _fail_all(self, error: EngineDeadError) -> None:
        for stream in list(self._streams.values()):
            self._processor.close(stream.request, EngineDeadError(str(error)))
        self._forget_finished()
        for call in self._calls.values():
            if not call.done.done():
                call.done.set_exception(EngineDeadError(str(error)))

    def _check_alive(self) -> None:
        if self.dead is not None:
            raise EngineDeadError(str(self.dead))

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
