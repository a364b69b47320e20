"""What the runner needs of an engine; `ClientEngine` is the real one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class EngineLimits:
    """Sizes that the window of rows in flight is cut to."""

    max_running_requests: int
    max_total_tokens: int


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A row that the engine can run: tokenised and checked.

    num_tokens: of its prompt, and what its answer may come to.  payload: the engine's own.
    """

    num_tokens: int
    payload: Any


@dataclass(frozen=True, slots=True)
class RowAnswer:
    """body: OpenAI's response object, as msgspec can write it."""

    body: Any
    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int


class RowEngine(Protocol):
    limits: EngineLimits
    #: url -> names that its body may have.
    fields: dict[str, frozenset[str]]
    #: Names that `--sampling` may set.
    sampling_fields: frozenset[str]
    #: Names that a row may call the model by without a remark.
    model_names: frozenset[str]

    def prepare(self, url: str, body: dict[str, Any]) -> PreparedRequest:
        """Check and tokenise; called from several threads at once. Raises RequestError."""

    async def answer(self, request: PreparedRequest) -> RowAnswer:
        """Run it. Raises RequestError (this row only) or EngineError (the whole run)."""
