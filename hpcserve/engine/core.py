"""The core: one process, one scheduler, one loop. Requests in, steps to the workers, tokens out."""

from __future__ import annotations

import gc
import sys
import time
from collections import deque
from dataclasses import replace
from pathlib import Path

from hpcserve.config.engine import EngineConfig
from hpcserve.engine.core_outputs import by_frontend
from hpcserve.engine.executor import Executor, StepHandle
from hpcserve.engine.grammar_gate import GrammarGate
from hpcserve.engine.process_age import process_age_s
from hpcserve.engine.router import PrefixRouter
from hpcserve.engine.step_log import StepLog
from hpcserve.errors import EngineDeadError, EngineError, GrammarError, HpcserveError
from hpcserve.ipc.channel import CoreChannel
from hpcserve.ipc.endpoints import folder_of
from hpcserve.ipc.messages import (
    AbortRequests,
    ControlReply,
    ControlRequest,
    EngineCoreRequest,
    EngineDead,
    FrontendMessage,
    Ready,
    RequestFailed,
)
from hpcserve.kvcache.no_reuse import NoReuse
from hpcserve.kvcache.radix import RadixCache
from hpcserve.log import get_logger
from hpcserve.scheduler.lockstep import LockstepScheduler
from hpcserve.scheduler.scheduler import Scheduler

logger = get_logger(__name__)

#: An idle core looks up this often, only to notice a signal; requests wake it at once.
_IDLE_POLL_MS = 1000
#: An idle core with grammars that are being compiled.
_GRAMMAR_POLL_MS = 2
_SEED_STRIDE = 1_000_003


class EngineCore:
    """Runs steps while there is work; two are under way at once where the device is asynchronous."""

    def __init__(self, config: EngineConfig, executor: Executor, channel: CoreChannel) -> None:
        info = executor.info
        page_size = config.cache.page_size
        reuse = config.cache.enable_radix_cache
        self._executor = executor
        self._gate = GrammarGate(executor)
        # What came before the workers' own phases: Python, its imports, starting processes.
        self._imports_s = max(0.0, process_age_s() - sum(info.timings_s.values()))
        self._channel = channel
        # Replicas draw different seeds for requests that bring none.

        def scheduler_of(dp_rank: int) -> Scheduler:
            seed = config.scheduler.random_seed + _SEED_STRIDE * dp_rank
            return Scheduler(
                replace(config.scheduler, random_seed=seed),
                RadixCache(page_size) if reuse else NoReuse(page_size),
                info.num_pages,
                context_length=info.context_length,
                eos_token_ids=info.eos_token_ids,
                num_micro_batches=config.parallel.pp_size,
            )

        together = config.parallel.enable_dp_attention
        self._scheduler: Scheduler | LockstepScheduler = scheduler_of(config.dp_rank)
        if together:
            replicas = [scheduler_of(dp_rank) for dp_rank in range(config.parallel.dp_size)]
            self._scheduler = LockstepScheduler(replicas, PrefixRouter().choose)
        overlap = config.scheduler.enable_overlap
        if overlap is None:
            overlap = not info.device.startswith("cpu")
        self._depth = 2 if overlap else 1
        # Every stage has a micro-batch, and one more is on its way.
        if config.parallel.pp_size > 1:
            self._depth = config.parallel.pp_size + 1
        self._in_flight: deque[StepHandle] = deque()
        self._log = StepLog(self._scheduler)
        self._stopping = False
        self._was_busy = False
        # When the last result came, if a step has been running since.
        self._last_end_s: float | None = None

    def ready(self) -> Ready:
        info = self._executor.info
        return Ready(
            context_length=self._scheduler.context_length,
            vocab_size=info.vocab_size,
            max_total_tokens=self._scheduler.num_pages * self._scheduler.page_size,
            page_size=self._scheduler.page_size,
            eos_token_ids=info.eos_token_ids,
            device=info.device,
            timings_s={"imports": self._imports_s, **info.timings_s},
        )

    def run(self) -> None:
        """Serve until a frontend asks for shutdown."""
        self._channel.broadcast(self.ready())
        # What start-up made lives for ever: no collection needs to look at it again.
        gc.collect()
        gc.freeze()
        while not self._stopping:
            self._receive()
            self._step()

    def stop(self) -> None:
        """Leave `run` after the current step."""
        self._stopping = True

    def _receive(self) -> None:
        busy = self._scheduler.has_requests or bool(self._in_flight)
        if self._was_busy and not busy:
            self._scheduler.check_idle()
            self._log.on_idle()
            self._last_end_s = None
        self._was_busy = busy
        self._executor.check()
        idle_ms = _GRAMMAR_POLL_MS if self._gate else _IDLE_POLL_MS
        for frontend, message in self._channel.receive(0 if busy else idle_ms):
            self._handle(frontend, message)
        for frontend, request, refusal in self._gate.opened():
            if refusal is None:
                self._add(frontend, request)
            else:
                self._refuse(frontend, request, GrammarError(refusal))

    def _step(self) -> None:
        issued = None
        if len(self._in_flight) < self._depth:
            issued = self._scheduler.schedule()
            if issued is not None:
                self._in_flight.append(self._executor.submit(issued))
        if self._in_flight and (issued is None or len(self._in_flight) == self._depth):
            output = self._in_flight.popleft().result()
            updates = self._scheduler.update(output, self._duration_s())
            for frontend, message in by_frontend(updates, output).items():
                if not self._channel.send(frontend, message):
                    self._scheduler.abort_all(frontend)
                    self._gate.abort(frontend)
            self._log.on_step(time.monotonic())

    def _duration_s(self) -> float | None:
        """How long the step that just ended had the device, if it was busy all the while."""
        now = time.monotonic()
        duration = None if self._last_end_s is None else now - self._last_end_s
        self._last_end_s = now if self._in_flight or self._depth == 1 else None
        return duration

    def _handle(self, frontend: bytes, message: FrontendMessage) -> None:
        if isinstance(message, EngineCoreRequest):
            if self._gate.admits(frontend, message):
                self._add(frontend, message)
        elif isinstance(message, AbortRequests):
            self._gate.abort(frontend, message.request_ids)
            for request_id in message.request_ids:
                self._scheduler.abort(request_id, frontend)
        else:
            self._channel.send(frontend, self._control(message))

    def _add(self, frontend: bytes, request: EngineCoreRequest) -> None:
        try:
            self._scheduler.add(request, frontend)
        except HpcserveError as error:
            self._refuse(frontend, request, error)

    def _refuse(self, frontend: bytes, request: EngineCoreRequest, error: HpcserveError) -> None:
        code = error.code or type(error).__name__
        self._channel.send(frontend, RequestFailed(request.request_id, code, str(error)))

    def _control(self, message: ControlRequest) -> ControlReply:
        error, results = None, list[str]()
        try:
            results = self._obey(message)
        except EngineDeadError:
            raise
        except EngineError as refused:
            error = str(refused)
        return ControlReply(message.call_id, self._scheduler.stats(), error, results)

    def _obey(self, message: ControlRequest) -> list[str]:
        if message.kind == "flush_cache":
            logger.info("dropped %d cached pages", self._scheduler.flush_cache())
        elif message.kind == "start_profile":
            self._executor.start_profile(message.argument)
        elif message.kind == "stop_profile":
            return self._executor.stop_profile(message.argument)
        elif message.kind == "discard_profile":
            self._executor.discard_profile()
        elif message.kind == "shutdown":
            self._stopping = True
        elif message.kind != "stats":
            raise EngineError(f"unknown control request {message.kind!r}")
        return []


def run_core(config: EngineConfig, endpoint: str) -> None:
    """Be the core process until told to stop. Exits with the code of the error that ended it.

    endpoint: as `Endpoint.parse` takes it.
    """
    channel = CoreChannel(endpoint)
    executor: Executor | None = None
    try:
        executor = make_executor(config, folder_of(endpoint))
        EngineCore(config, executor, channel).run()
    except HpcserveError as error:
        channel.broadcast(EngineDead("core", str(error), error.exit_code))
        _last_words(executor, error)
        sys.exit(error.exit_code)
    # A defect of the engine: whatever it is, it is logged whole, and every frontend hears of it.
    except Exception as error:
        logger.exception("the engine core failed")
        channel.broadcast(EngineDead("core", f"{type(error).__name__}: {error}"))
        _last_words(executor, error)
        sys.exit(1)
    else:
        executor.shutdown()
    finally:
        channel.close()


def _last_words(executor: Executor | None, error: Exception) -> None:
    """End the workers, then say why: the last line of the log is the reason."""
    if executor is not None:
        executor.shutdown()
    logger.error("the engine ends: %s", error)


def make_executor(config: EngineConfig, folder: Path | None = None) -> Executor:
    """The workers of one replica.  folder: where sockets of theirs may stand."""
    if config.parallel.replica_size > 1 or config.parallel.enable_dp_attention:
        from hpcserve.engine.executor_mp import MpExecutor

        return MpExecutor(config, folder=folder)
    from hpcserve.engine.executor_inproc import InprocExecutor

    return InprocExecutor(config)
