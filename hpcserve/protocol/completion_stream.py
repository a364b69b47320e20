"""One answer of a completion as stream chunks."""

from __future__ import annotations

from hpcserve.outputs import CompletionOutput, TokenLogprob
from hpcserve.protocol.adapter import EngineInput, asks_only_prompt, echoed_text
from hpcserve.protocol.chunks import ChunkWriter
from hpcserve.protocol.logprobs import completion_logprobs
from hpcserve.protocol.openai import CompletionBody
from hpcserve.protocol.responses import CompletionLogprobs
from hpcserve.tokenizer.tokenizer import Tokenizer


class CompletionAnswerStream:
    """Turns one answer's deltas into chunks; with echo the prompt stands before the first."""

    def __init__(
        self,
        body: CompletionBody,
        prompt: EngineInput,
        index: int,
        writer: ChunkWriter,
        tokenizer: Tokenizer,
    ) -> None:
        self._body = body
        self._prompt = prompt
        self._index = index
        self._writer = writer
        self._tokenizer = tokenizer
        self._only_prompt = asks_only_prompt(body)
        self._owes_echo = bool(body.echo)
        self._offset = 0
        #: Whether its chunks, but the first and the last, are text as it comes.
        self.is_plain = not self._only_prompt and body.logprobs is None

    def num_tokens(self, delta: CompletionOutput) -> int:
        """Generated tokens that the client is told of."""
        return 0 if self._only_prompt else len(delta.token_ids)

    def write(self, delta: CompletionOutput, prompt_logprobs: list[TokenLogprob] | None) -> bytes:
        """The chunk of one delta, or b"" where it has nothing to say."""
        text = "" if self._only_prompt else delta.text
        logprobs = self._logprobs(delta, prompt_logprobs)
        if self._owes_echo:
            text = echoed_text(self._body, self._prompt, self._tokenizer) + text
            self._owes_echo = False
        if delta.finish_reason is None and logprobs is None:
            return self._writer.text(self._index, text) if text else b""
        ends_early = self._only_prompt and delta.finish_reason is not None
        return self._writer.choice(
            {
                "index": self._index,
                "text": text,
                "logprobs": logprobs,
                "finish_reason": "length" if ends_early else delta.finish_reason,
                "matched_stop": delta.stop_reason,
            }
        )

    def _logprobs(
        self, delta: CompletionOutput, prompt_logprobs: list[TokenLogprob] | None
    ) -> CompletionLogprobs | None:
        if delta.logprobs is None:
            return None
        ids: list[int] = [] if self._only_prompt else list(delta.token_ids)
        entries: list[TokenLogprob | None] = [] if self._only_prompt else list(delta.logprobs)
        if self._owes_echo:
            ids = [*self._prompt.prompt_token_ids, *ids]
            entries = [None, *(prompt_logprobs or ()), *entries]
        found = completion_logprobs(entries, ids, self._tokenizer, offset=self._offset)
        self._offset += sum(map(len, found.tokens))
        return found
