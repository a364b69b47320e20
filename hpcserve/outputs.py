"""What a request gives back: shared by `LLM`, the server and batch."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt


class TokenLogprob(msgspec.Struct):
    """One token's log-probability; `top`: the likeliest (token id, log-probability) there."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]]


class CompletionOutput(msgspec.Struct):
    """One of a request's `n` answers; in a stream, what is new of it.

    token_ids: every generated token, the one that ended the answer included.
    finish_reason: stop, length or abort; None while it goes on.
    stop_reason: the token id or the stop string that ended it, where one did.
    logprobs: aligned with token_ids, where asked for.
    """

    index: int
    text: str = ""
    token_ids: list[int] = []
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    logprobs: list[TokenLogprob] | None = None


class RequestOutput(msgspec.Struct):
    """A request's answers; in a stream, those of them that have news.

    prompt_logprobs: one entry per prompt token but the first, where asked for (in a stream, once).
    num_cached_tokens: tokens of the prompt whose KV was reused; known when an answer ends.
    arrival_s, first_token_s, finished_s: time.perf_counter of this process; 0 where not known.
    """

    request_id: str
    prompt_token_ids: Sequence[int] | npt.NDArray[np.int32]
    outputs: list[CompletionOutput]
    finished: bool = False
    num_cached_tokens: int = 0
    prompt: str | None = None
    prompt_logprobs: list[TokenLogprob] | None = None
    arrival_s: float = 0.0
    first_token_s: float = 0.0
    finished_s: float = 0.0

    @property
    def num_output_tokens(self) -> int:
        return sum(len(output.token_ids) for output in self.outputs)
