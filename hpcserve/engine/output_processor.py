"""The core's outputs to text, request by request: pure state, no sockets, no event loop.

This runs once per generated token, so it is laid out for that: an answer that nobody streams and
that has no stop strings costs one list append a token, and its text is decoded once at the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from hpcserve.errors import HpcserveError
from hpcserve.ipc.messages import EngineCoreOutputs, FinishedRequest, Int32Array, TokenLogprobs
from hpcserve.outputs import CompletionOutput, RequestOutput, TokenLogprob
from hpcserve.sampling_params import SamplingParams
from hpcserve.tokenizer.stop_strings import StopStrings
from hpcserve.tokenizer.tokenizer import Tokenizer


class Answer:
    """One request of the core: one of the `n` answers of a user's request."""

    __slots__ = (
        "_detokenizer",
        "_num_taken",
        "_stop",
        "_text",
        "finish_reason",
        "index",
        "logprobs",
        "params",
        "plain",
        "request",
        "request_id",
        "stop_reason",
        "token_ids",
    )

    def __init__(self, request: OpenRequest, request_id: int, index: int) -> None:
        params = request.params
        self.request = request
        self.request_id = request_id
        self.index = index
        self.params = params
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprob] | None = None if params.logprobs is None else []
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        #: No text is needed before the end.
        self.plain = not request.streams and not params.stop
        self._detokenizer = request.tokenizer.detokenizer(
            skip_special_tokens=params.skip_special_tokens
        )
        self._stop: StopStrings | None = None
        if params.stop:
            self._stop = StopStrings(params.stop, include=params.include_stop_str_in_output)
        self._text: list[str] = []
        self._num_taken = 0

    def add_text(self, token_id: int) -> bool:
        """Detokenise one token. True where a stop string ended the answer with it."""
        text = self._detokenizer.add(token_id)
        return bool(text) and self._add_piece(text)

    def end(self, finished: FinishedRequest) -> None:
        """The core ended it: decode what is left."""
        if self.plain:
            ids = self.token_ids[:-1] if self.hides_last(finished) else self.token_ids
            self._text.append(self._detokenizer.add_all(ids))
        if not self._add_piece(self._detokenizer.finish()):
            self._flush()
            self.finish_reason = finished.finish_reason
            self.stop_reason = finished.stop_token_id

    def abort(self) -> None:
        """It ends here, with the text so far."""
        if self.plain:
            self._text.append(self._detokenizer.add_all(self.token_ids))
        if not self._add_piece(self._detokenizer.finish()):
            self._flush()
            self.finish_reason = "abort"

    def hides_last(self, finished: FinishedRequest) -> bool:
        """Whether the text ends before the last token, because that one is a stop token."""
        return (
            finished.stop_token_id is not None
            and not self.params.include_stop_str_in_output
            and bool(self.token_ids)
        )

    @property
    def has_news(self) -> bool:
        return bool(self._text) or self.finish_reason is not None

    def take(self) -> CompletionOutput:
        """What is new since the last take."""
        start, self._num_taken = self._num_taken, len(self.token_ids)
        text = self._text[0] if len(self._text) == 1 else "".join(self._text)
        self._text.clear()
        return CompletionOutput(
            self.index,
            text,
            self.token_ids[start:] if start else self.token_ids.copy(),
            self.finish_reason,
            self.stop_reason,
            None if self.logprobs is None else self.logprobs[start:],
        )

    def _add_piece(self, text: str) -> bool:
        if self._stop is not None and len(self.token_ids) >= self.params.min_tokens:
            text, found = self._stop.add(text)
            if found is not None:
                self.finish_reason, self.stop_reason = "stop", found
        if text:
            self._text.append(text)
        return self.finish_reason is not None

    def _flush(self) -> None:
        if self._stop is not None and (text := self._stop.flush()):
            self._text.append(text)


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
        self.notify: Callable[[], None] = _ignore
        self._notified = False
        self._exhausted = False
        self._has_prompt_logprobs = False

    @property
    def finished(self) -> bool:
        return self.num_open == 0 or self.error is not None

    def take(self) -> RequestOutput | None:
        """News, or None where there is none. Raises the request's error once its news are out."""
        self._notified = False
        if self.error is not None and not self.streams:
            raise self.error
        if self._exhausted or not (self.streams or self.num_open == 0):
            return None
        news = [answer.take() for answer in self.answers if answer.has_news]
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

    def add_prompt_logprobs(self, entries: list[TokenLogprobs]) -> None:
        """Every answer brings the same: those that come first count."""
        if not self._has_prompt_logprobs:
            self._has_prompt_logprobs = True
            ids = self.prompt_token_ids[1:]
            self.prompt_logprobs = [
                _logprob(int(token_id), entry) for token_id, entry in zip(ids, entries, strict=True)
            ]

    def tell(self) -> None:
        if not self._notified:
            self._notified = True
            self.notify()

    def answer_ended(self, now_s: float) -> None:
        self.num_open -= 1
        if self.num_open == 0:
            self.finished_s = now_s
        if self.streams or self.num_open == 0:
            self.tell()

    def _take_prompt_logprobs(self) -> list[TokenLogprob] | None:
        found, self.prompt_logprobs = self.prompt_logprobs, None
        return found


class OutputProcessor:
    """Every running answer of one frontend, by the id the core knows it by."""

    def __init__(self) -> None:
        self._answers: dict[int, Answer] = {}
        self._next_id = 0
        self._finished: list[str] = []

    def __len__(self) -> int:
        return len(self._answers)

    def open(self, request: OpenRequest) -> list[Answer]:
        """Give the request's answers their ids."""
        for index in range(request.params.n):
            answer = Answer(request, self._next_id, index)
            self._answers[self._next_id] = answer
            request.answers.append(answer)
            self._next_id += 1
        return list(request.answers)

    def process(self, message: EngineCoreOutputs) -> list[int]:
        """Take in one step. Returns ids that a stop string ended: the core must abort them."""
        now_s = time.perf_counter()
        answers = self._answers
        ended = {item.request_id: item for item in message.finished}
        if message.logprobs is not None:
            self._add_logprobs(message.request_ids, message.token_ids, message.logprobs)
        stopped: list[int] = []
        for request_id, token_id in zip(message.request_ids, message.token_ids, strict=True):
            answer = answers.get(request_id)
            if answer is None:
                continue
            answer.token_ids.append(token_id)
            if answer.plain:
                continue
            request = answer.request
            if not request.first_token_s:
                request.first_token_s = now_s
            if request_id in ended and answer.hides_last(ended[request_id]):
                continue
            if answer.add_text(token_id):
                stopped.append(request_id)
            elif request.streams and answer.has_news:
                request.tell()
        self._add_prompt_facts(message)
        return self._end(ended, stopped, now_s)

    def close(self, request: OpenRequest, error: HpcserveError | None = None) -> list[int]:
        """End a request from this side. Returns the ids of its answers that the core still runs.

        Without an error its answers end with the reason abort, keeping their text so far.
        """
        running = [answer for answer in request.answers if answer.request_id in self._answers]
        for answer in running:
            del self._answers[answer.request_id]
        if error is not None and not request.finished:
            request.error = error
            self._finished.append(request.name)
            request.tell()
        elif error is None:
            now_s = time.perf_counter()
            for answer in running:
                answer.abort()
                self._answer_ended(answer, now_s)
        return [answer.request_id for answer in running]

    def take_finished(self) -> list[str]:
        """Names of the requests that ended since the last call."""
        finished, self._finished = self._finished, []
        return finished

    def request_of(self, request_id: int) -> OpenRequest | None:
        answer = self._answers.get(request_id)
        return None if answer is None else answer.request

    def _end(
        self, ended: dict[int, FinishedRequest], stopped: list[int], now_s: float
    ) -> list[int]:
        for request_id in stopped:
            self._answer_ended(self._answers.pop(request_id), now_s)
        for request_id, finished in ended.items():
            answer_or_none = self._answers.pop(request_id, None)
            if answer_or_none is not None:
                answer_or_none.end(finished)
                self._answer_ended(answer_or_none, now_s)
        return [request_id for request_id in stopped if request_id not in ended]

    def _answer_ended(self, answer: Answer, now_s: float) -> None:
        request = answer.request
        request.answer_ended(now_s)
        if request.num_open == 0:
            self._finished.append(request.name)

    def _add_logprobs(
        self, request_ids: list[int], token_ids: list[int], logprobs: list[TokenLogprobs | None]
    ) -> None:
        for request_id, token_id, entry in zip(request_ids, token_ids, logprobs, strict=True):
            answer = self._answers.get(request_id)
            if entry is not None and answer is not None and answer.logprobs is not None:
                answer.logprobs.append(_logprob(token_id, entry))

    def _add_prompt_facts(self, message: EngineCoreOutputs) -> None:
        """What is known once per request."""
        for request_id, num_cached_tokens in message.num_cached_tokens or ():
            answer = self._answers.get(request_id)
            if answer is not None and answer.index == 0:
                answer.request.num_cached_tokens = num_cached_tokens
        for finished in message.finished:
            answer = self._answers.get(finished.request_id)
            if answer is not None and answer.index == 0:
                answer.request.num_cached_tokens = finished.num_cached_tokens
        for request_id, entries in message.prompt_logprobs or ():
            answer = self._answers.get(request_id)
            if answer is not None:
                answer.request.add_prompt_logprobs(entries)


def _logprob(token_id: int, entry: TokenLogprobs) -> TokenLogprob:
    top = list(zip(entry.top_token_ids, entry.top_logprobs, strict=True))
    return TokenLogprob(token_id, entry.logprob, top)


def _ignore() -> None:
    """A request without a reader."""
