"""The core's outputs to text, request by request: pure state, no sockets, no event loop.

This runs once per generated token, so it is laid out for that: a token of an answer without stop
strings costs one list append here; its text is made when somebody takes it.
"""

from __future__ import annotations

import time

from hpcserve.engine.answer import Answer
from hpcserve.engine.observer import EngineObserver, TokenGaps
from hpcserve.engine.open_request import OpenRequest, token_logprob
from hpcserve.engine.pace import Pace
from hpcserve.errors import HpcserveError
from hpcserve.ipc.messages import EngineCoreOutputs, FinishedRequest, TokenLogprobs


class OutputProcessor:
    """Every running answer of one frontend, by the id the core knows it by."""

    def __init__(self) -> None:
        self._answers: dict[int, Answer] = {}
        self._next_id = 0
        self._finished: list[str] = []
        self.pace = Pace()
        #: When a token came last, by time.perf_counter.
        self.last_token_s = 0.0
        self.observer: EngineObserver | None = None
        #: By replica.
        self._gaps: dict[int, TokenGaps] = {}

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

    def process(self, message: EngineCoreOutputs, replica: int = 0) -> list[int]:
        """Take in one step. Returns ids that a stop string ended: the core must abort them."""
        now_s = self.last_token_s = time.perf_counter()
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
            if answer.stop is not None:
                if self._stops(answer, ended.get(request_id)):
                    stopped.append(request_id)
            elif answer.streams:
                request = answer.request
                if not request.notified:
                    request.notified = True
                    request.notify()
        self._add_prompt_facts(message, now_s)
        if self.observer is not None:
            self._observe_gap(self.observer, message, replica, now_s)
        return self._end(ended, stopped, now_s)

    def _stops(self, answer: Answer, finished: FinishedRequest | None) -> bool:
        """Whether the newest token's text ends an answer with stop strings."""
        if finished is not None and answer.hides_last(finished):
            return False
        if answer.watch(answer.token_ids[-1]):
            return True
        if answer.streams and answer.has_text:
            answer.request.tell()
        return False

    def close(self, request: OpenRequest, error: HpcserveError | None = None) -> list[int]:
        """End a request from this side. Returns the ids of its answers that the core still runs.

        Without an error its answers end with the reason abort, keeping their text so far.
        """
        running = [answer for answer in request.answers if answer.request_id in self._answers]
        for answer in running:
            del self._answers[answer.request_id]
        if error is not None and not request.finished:
            request.error = error
            self._request_ended(request)
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
        request.answer_ended(answer, now_s)
        if answer.finish_reason != "abort":
            self.pace.add(now_s - request.arrival_s, len(answer.token_ids))
        if request.num_open == 0:
            self._request_ended(request)

    def _request_ended(self, request: OpenRequest) -> None:
        self._finished.append(request.name)
        if self.observer is not None:
            self.observer.on_end(request)

    def _observe_gap(
        self, observer: EngineObserver, message: EngineCoreOutputs, replica: int, now_s: float
    ) -> None:
        gaps = self._gaps.get(replica)
        if gaps is None:
            gaps = self._gaps[replica] = TokenGaps()
        if (found := gaps.add(now_s, message)) is not None:
            observer.on_tokens(replica, *found)

    def _add_logprobs(
        self, request_ids: list[int], token_ids: list[int], logprobs: list[TokenLogprobs | None]
    ) -> None:
        for request_id, token_id, entry in zip(request_ids, token_ids, logprobs, strict=True):
            answer = self._answers.get(request_id)
            if entry is not None and answer is not None and answer.logprobs is not None:
                answer.logprobs.append(token_logprob(token_id, entry))

    def _add_prompt_facts(self, message: EngineCoreOutputs, now_s: float) -> None:
        """What is known once per request."""
        queued_s = message.queued_s or ()
        for place, (request_id, num_cached_tokens) in enumerate(message.num_cached_tokens or ()):
            answer = self._answers.get(request_id)
            if answer is None:
                continue
            request = answer.request
            if answer.index == 0:
                request.num_cached_tokens = num_cached_tokens
            if not request.first_token_s:
                request.first_token_s = now_s
                if self.observer is not None:
                    waited_s = queued_s[place] if place < len(queued_s) else 0.0
                    self.observer.on_first_token(request, waited_s)
        for finished in message.finished:
            answer = self._answers.get(finished.request_id)
            if answer is not None and answer.index == 0:
                answer.request.num_cached_tokens = finished.num_cached_tokens
        for request_id, entries in message.prompt_logprobs or ():
            answer = self._answers.get(request_id)
            if answer is not None:
                answer.request.add_prompt_logprobs(entries)
