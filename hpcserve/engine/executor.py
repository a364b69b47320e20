"""How the core reaches the workers: in its own process, or (several GPUs) in others.

Both forms take the same SchedulerOutput, so the scheduler does not know which one runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

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

    @abstractmethod
    def start_profile(self, folder: str) -> None:
        """Let every rank record what runs from now on; its trace will lie in `folder` on its node.

        Raises EngineError where one is taken already, or a rank cannot; then none is taken.
        """

    @abstractmethod
    def stop_profile(self, moment: str) -> list[str]:
        """End the recording after the steps so far; returns the paths of the traces, one a rank.

        moment: part of their names.  Raises EngineError where none is taken, or a rank cannot write
        its own; none is taken then.
        """

    @abstractmethod
    def discard_profile(self) -> None:
        """End the recording without traces; nothing where none is taken."""

    @abstractmethod
    def shutdown(self) -> None:
        """Free the device; further calls are errors."""
