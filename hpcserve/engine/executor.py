"""How the core reaches the workers: in its own process, or (several GPUs) in others.

Both forms take the same SchedulerOutput, so the scheduler does not know which one runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from hpcserve.errors import EngineError
from hpcserve.grammar import Grammar
from hpcserve.ipc.messages import (
    GrammarCompiled,
    LockstepOutput,
    ModelRunnerOutput,
    SchedulerOutput,
    WorkerInfo,
)


class StepHandle(ABC):
    """A step that was issued; its result may still be on the way."""

    @abstractmethod
    def done(self) -> bool:
        """Whether `result` would return without waiting."""

    @abstractmethod
    def result(self) -> ModelRunnerOutput:
        """Wait for the step and return what it sampled."""


class Executor(ABC):
    """Steps run in the order in which they were issued."""

    #: Found at set-up; the core sizes its page pool by it.
    info: WorkerInfo

    @abstractmethod
    def submit(self, step: SchedulerOutput | LockstepOutput) -> StepHandle:
        """Issue a step; of several replicas only where it was made for them.

        Returns at once where the device works asynchronously."""

    def check(self) -> None:
        """Raise EngineDeadError where a worker is gone; cheap, called between steps."""
        return  # a worker in this process has no other way to be gone

    @abstractmethod
    def compile_grammar(self, grammar: Grammar) -> None:
        """Begin to make it ready; `compiled_grammars` says when it is. Returns at once."""

    @abstractmethod
    def compiled_grammars(self) -> list[GrammarCompiled]:
        """What became of grammars since the last call; cheap."""

    def start_profile(self, folder: str) -> None:
        """Record what runs from now on. Raises EngineError where it cannot."""
        raise EngineError("a profile can be taken only of an engine on one GPU or CPU")

    def stop_profile(self) -> str:
        """End the recording; returns the path of its trace. Raises EngineError where there is none."""
        raise EngineError("no profile is being taken")

    @abstractmethod
    def shutdown(self) -> None:
        """Free the device; further calls are errors."""
