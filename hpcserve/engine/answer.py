"""One answer while it grows: from token ids to text, up to a stop string."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpcserve.ipc.messages import FinishedRequest
from hpcserve.outputs import CompletionOutput, TokenLogprob
from hpcserve.tokenizer.stop_strings import StopStrings

if TYPE_CHECKING:
    from hpcserve.engine.open_request import OpenRequest


class Answer:
    """One request of the core: one of the `n` answers of a user's request.

    Without stop strings nobody needs the text of a token before somebody takes it, so it is made
    then, of all tokens that are new; with them, each token's text is looked at as it comes.
    """

    __slots__ = (
        "_detokenizer",
        "_num_decoded",
        "_num_taken",
        "_text",
        "finish_reason",
        "index",
        "logprobs",
        "params",
        "request",
        "request_id",
        "stop",
        "stop_reason",
        "streams",
        "token_ids",
    )

    def __init__(self, request: OpenRequest, request_id: int, index: int) -> None:
        params = request.params
        self.request = request
        self.request_id = request_id
        self.index = index
        self.params = params
        self.streams = request.streams
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprob] | None = None if params.logprobs is None else []
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self._detokenizer = request.tokenizer.detokenizer(
            skip_special_tokens=params.skip_special_tokens
        )
        self.stop: StopStrings | None = None
        if params.stop:
            self.stop = StopStrings(params.stop, include=params.include_stop_str_in_output)
        # Pieces that are ready; of the tokens before the first that is not decoded.
        self._text: list[str] = []
        self._num_decoded = 0
        self._num_taken = 0

    def watch(self, token_id: int) -> bool:
        """Decode the newest token, of an answer with stop strings. True where one ended it."""
        self._num_decoded = len(self.token_ids)
        text = self._detokenizer.add(token_id)
        return bool(text) and self._add_piece(text)

    def end(self, finished: FinishedRequest) -> None:
        """The core ended it: decode what is left."""
        hidden = self.stop is None and self.hides_last(finished)
        self._decode(len(self.token_ids) - hidden)
        if not self._add_piece(self._detokenizer.finish()):
            self._flush()
            self.finish_reason = finished.finish_reason
            self.stop_reason = finished.stop_token_id

    def abort(self) -> None:
        """It ends here, with the text so far."""
        self._decode(len(self.token_ids))
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
    def has_text(self) -> bool:
        """Whether there is text to take, in an answer with stop strings."""
        return bool(self._text)

    def take(self) -> CompletionOutput | None:
        """What is new since the last take: text, or the end. None where there is neither yet."""
        if self.finish_reason is None:
            self._decode(len(self.token_ids))
        if not self._text and self.finish_reason is None:
            return None
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

    def take_text(self) -> tuple[str, int]:
        """`take` of an answer that goes on: its new text, and the number of its tokens."""
        token_ids = self.token_ids
        end = len(token_ids)
        if self.stop is None and end == self._num_decoded + 1 and not self._text:
            text = self._detokenizer.add(token_ids[-1])
            self._num_decoded = end
        else:
            self._decode(end)
            text = "".join(self._text)
            self._text.clear()
        if not text:
            return "", 0
        start, self._num_taken = self._num_taken, end
        return text, end - start

    def _decode(self, end: int) -> None:
        """Make the text of the tokens before `end`; of an answer with stop strings it is made."""
        if self._num_decoded < end and self.stop is None:
            text = self._detokenizer.add_all(self.token_ids[self._num_decoded : end])
            self._num_decoded = end
            if text:
                self._text.append(text)

    def _add_piece(self, text: str) -> bool:
        if self.stop is not None and len(self.token_ids) >= self.params.min_tokens:
            text, found = self.stop.add(text)
            if found is not None:
                self.finish_reason, self.stop_reason = "stop", found
        if text:
            self._text.append(text)
        return self.finish_reason is not None

    def _flush(self) -> None:
        if self.stop is not None and (text := self.stop.flush()):
            self._text.append(text)
