"""A user's request while it runs, as its reader sees it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from hpcserve.engine.answer import Answer
from hpcserve.errors import HpcserveError
from hpcserve.ipc.messages import Int32Array, TokenLogprobs
from hpcserve.outputs import RequestOutput, TokenLogprob
from hpcserve.sampling_params import SamplingParams
from hpcserve.tokenizer.tokenizer import Tokenizer


class OpenRequest:
    """A user's request while it runs.

    streams: whether `notify` is called for every bit of news, or once at the end.
    notify: set by the reader; called when there is something to take, not again until it took it.
    """

    def __init__(
        self,
        name: str,
        prompt_token_ids: Sequence[int] | Int32Array,
        params: SamplingParams,
        tokenizer: Tokenizer,
        *,
        streams: bool,
    ) -> None:
        self.name = name
        self.prompt_token_ids = prompt_token_ids
        self.params = params
        self.tokenizer = tokenizer
        self.streams = streams
        self.answers: list[Answer] = []
        self.num_open = params.n
        self.error: HpcserveError | None = None
        self.prompt_logprobs: list[TokenLogprob] | None = None
        self.num_cached_tokens = 0
        self.arrival_s = time.perf_counter()
        self.first_token_s = 0.0
        self.finished_s = 0.0
        #: Of the answer that ended last.
        self.finish_reason: str | None = None
        #: Of the answers that have ended.
        self.num_output_tokens = 0
        #: Number of the replica that works on it.
        self.replica = 0
        self.notify: Callable[[], None] = _ignore
        #: Whether the reader was told of news that it has not taken.
        self.notified = False
        self._exhausted = False
        self._has_prompt_logprobs = False
        self._is_text = streams and params.n == 1 and params.logprobs is None

    @property
    def finished(self) -> bool:
        return self.num_open == 0 or self.error is not None

    def take(self) -> RequestOutput | None:
        """News, or None where there is none. Raises the request's error once its news are out."""
        self.notified = False
        if self.error is not None and not self.streams:
            raise self.error
        if self._exhausted or not (self.streams or self.num_open == 0):
            return None
        taken = [answer.take() for answer in self.answers]
        news = [output for output in taken if output is not None]
        if not news and self.error is not None:
            raise self.error
        self._exhausted = self.num_open == 0
        if not news:
            return None
        # An answer that has ended says so once.
        self.answers = [answer for answer in self.answers if answer.finish_reason is None]
        return RequestOutput(
            self.name,
            self.prompt_token_ids,
            news,
            self._exhausted,
            self.num_cached_tokens,
            None,
            self._take_prompt_logprobs(),
            self.arrival_s,
            self.first_token_s,
            self.finished_s,
        )

    def take_text(self) -> tuple[str, int] | None:
        """`take` where that would give nothing but text of the one answer: the text ("" where no
        character is whole) and the number of its tokens. None: look at `take`."""
        if not self._is_text or self.error is not None or self.prompt_logprobs is not None:
            return None
        if not self.answers or self.answers[0].finish_reason is not None:
            return None
        self.notified = False
        return self.answers[0].take_text()

    def add_prompt_logprobs(self, entries: list[TokenLogprobs]) -> None:
        """Every answer brings the same: those that come first count."""
        if not self._has_prompt_logprobs:
            self._has_prompt_logprobs = True
            ids = self.prompt_token_ids[1:]
            self.prompt_logprobs = [
                token_logprob(int(token_id), entry)
                for token_id, entry in zip(ids, entries, strict=True)
            ]

    def tell(self) -> None:
        if not self.notified:
            self.notified = True
            self.notify()

    def answer_ended(self, answer: Answer, now_s: float) -> None:
        self.num_open -= 1
        self.finish_reason = answer.finish_reason
        self.num_output_tokens += len(answer.token_ids)
        if self.num_open == 0:
            self.finished_s = now_s
        if self.streams or self.num_open == 0:
            self.tell()

    def _take_prompt_logprobs(self) -> list[TokenLogprob] | None:
        found, self.prompt_logprobs = self.prompt_logprobs, None
        return found


def token_logprob(token_id: int, entry: TokenLogprobs) -> TokenLogprob:
    top = list(zip(entry.top_token_ids, entry.top_logprobs, strict=True))
    return TokenLogprob(token_id, entry.logprob, top)


def _ignore() -> None:
    """A request without a reader."""
