"""What the runner needs of an engine; `ClientBackend` is the real one."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec


@dataclass(frozen=True)
class EngineLimits:
    """Sizes that the window of rows in flight is cut to."""

    max_running_requests: int
    max_total_tokens: int


class PreparedRequest(msgspec.Struct, frozen=True):
    """A row that the engine can run: parsed and tokenised.

    num_tokens: of its prompt, and what its answer may come to.  payload: the engine's own.
    prefix: rows with a common beginning sort together by it.
    """

    num_tokens: int
    payload: Any
    prefix: bytes = b""


class RowAnswer(msgspec.Struct, frozen=True):
    """body: OpenAI's response object, as msgspec can write it."""

    body: Any
    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int


class RowPreparer(Protocol):
    """Makes requests of bodies; it outlives the engine, and needs none."""

    def prepare(self, url: str, body: dict[str, Any]) -> PreparedRequest:
        """Called from several threads at once. Raises RequestError."""


class PreparerRecipe(Protocol):
    """How another process comes to such a preparer; can be pickled."""

    def make(self) -> RowPreparer:
        """Raises ModelError and TokenizerError."""


class RowEngine(Protocol):
    """An engine that is ready.

    recipe: None where rows can be prepared in this process only.
    """

    limits: EngineLimits
    preparer: RowPreparer
    recipe: PreparerRecipe | None
    #: Names that a row may call the model by without a remark.
    model_names: frozenset[str]

    async def answer(self, request: PreparedRequest) -> RowAnswer:
        """Run it. Raises RequestError (this row only) or EngineError (the engine is gone)."""

    async def num_steps(self) -> int:
        """Grows while the engine works. Raises EngineError."""


class Backend(Protocol):
    """How an engine comes into being, again where one has died."""

    #: url -> names that its body may have.
    fields: dict[str, frozenset[str]]
    #: Names that `--sampling` may set.
    sampling_fields: frozenset[str]

    @property
    def num_gpus(self) -> int:
        """GPUs that an engine has."""

    def content(self) -> dict[str, dict[str, Any]]:
        """What its answers depend on: {"model": ..., "template": ...}. Raises ModelError."""

    def open(self) -> AbstractAsyncContextManager[RowEngine]:
        """Start it; it ends with the block. Raises ModelError and EngineStartError."""
