"""Log-probabilities in the three forms that clients read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hpcserve.outputs import TokenLogprob
from hpcserve.protocol.responses import (
    ChatLogprobs,
    CompletionLogprobs,
    ContentLogprob,
    TopLogprob,
)
from hpcserve.tokenizer.tokenizer import Tokenizer

#: JSON knows no infinity: what a model holds for impossible is written as this.
_LOWEST = -9999.0


def chat_logprobs(entries: Sequence[TokenLogprob], tokenizer: Tokenizer) -> ChatLogprobs:
    content = []
    for entry in entries:
        top = [TopLogprob(*_token(tokenizer, token_id, value)) for token_id, value in entry.top]
        content.append(ContentLogprob(*_token(tokenizer, entry.token_id, entry.logprob), top))
    return ChatLogprobs(content)


def completion_logprobs(
    entries: Sequence[TokenLogprob | None],
    token_ids: Sequence[int],
    tokenizer: Tokenizer,
    *,
    offset: int = 0,
) -> CompletionLogprobs:
    """entries: aligned with token_ids; None where there is no value (a prompt's first token).

    offset: characters that stand before the first token.
    """
    found = CompletionLogprobs([], [], [], [])
    for token_id, entry in zip(token_ids, entries, strict=True):
        text = tokenizer.token_text(token_id)
        found.tokens.append(text)
        found.text_offset.append(offset)
        offset += len(text)
        if entry is None:
            found.token_logprobs.append(None)
            found.top_logprobs.append(None)
            continue
        found.token_logprobs.append(max(entry.logprob, _LOWEST))
        top = {tokenizer.token_text(number): max(value, _LOWEST) for number, value in entry.top}
        # The chosen one is always among them, so there may be one more than was asked for.
        top.setdefault(text, max(entry.logprob, _LOWEST))
        found.top_logprobs.append(top)
    return found


def native_logprobs(
    entries: Sequence[TokenLogprob], tokenizer: Tokenizer | None
) -> tuple[list[Any], list[Any]]:
    """(logprob, token id, text or None) of each token, and lists of such of the likeliest.

    tokenizer: None leaves the texts out.
    """

    def triple(token_id: int, value: float) -> tuple[float, int, str | None]:
        text = None if tokenizer is None else tokenizer.token_text(token_id)
        return (max(value, _LOWEST), token_id, text)

    chosen = [triple(entry.token_id, entry.logprob) for entry in entries]
    top = [[triple(token_id, value) for token_id, value in entry.top] for entry in entries]
    return chosen, top


def _token(tokenizer: Tokenizer, token_id: int, logprob: float) -> tuple[str, float, list[int]]:
    data = tokenizer.token_bytes(token_id)
    return data.decode(errors="replace"), max(logprob, _LOWEST), list(data)
