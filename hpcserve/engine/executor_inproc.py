"""The executor of one GPU or CPU: the worker lives in the core's process, without a hop."""

from __future__ import annotations

from collections import deque
from pathlib import Path

from hpcserve.config.engine import EngineConfig
from hpcserve.engine.executor import Executor, StepHandle
from hpcserve.engine.step_profiler import StepProfiler
from hpcserve.engine.worker import Worker
from hpcserve.errors import ConfigError, EngineDeadError
from hpcserve.grammar import Grammar
from hpcserve.ipc.messages import GrammarCompiled, LockstepOutput, SchedulerOutput


class InprocExecutor(Executor):
    """Raises on construction what the worker raises: the model or the options are unusable."""

    def __init__(self, config: EngineConfig) -> None:
        if config.parallel.replica_size > 1:
            raise ConfigError(f"{config.parallel.product()}: this executor runs one rank")
        self._worker: Worker | None = Worker(config)
        self.info = self._worker.info
        self._profiler = StepProfiler(self._worker.setup.ranks.place)
        # Filled by the thread that compiles.
        self._compiled: deque[GrammarCompiled] = deque()

    def submit(self, step: SchedulerOutput | LockstepOutput) -> StepHandle:
        if self._worker is None or isinstance(step, LockstepOutput):
            raise EngineDeadError("the executor was shut down, or is of one rank")
        return self._worker.submit(step)

    def compile_grammar(self, grammar: Grammar) -> None:
        if self._worker is None:
            raise EngineDeadError("the executor was shut down")
        self._worker.compile_grammar(grammar, self._compiled.append)

    def compiled_grammars(self) -> list[GrammarCompiled]:
        return [self._compiled.popleft() for _ in range(len(self._compiled))]

    def start_profile(self, folder: str) -> None:
        self._profiler.start(Path(folder))

    def stop_profile(self, moment: str) -> list[str]:
        return [str(self._profiler.stop(moment))]

    def discard_profile(self) -> None:
        self._profiler.discard()

    def shutdown(self) -> None:
        if self._worker is not None:
            self._worker.finish()
        self._worker = None
