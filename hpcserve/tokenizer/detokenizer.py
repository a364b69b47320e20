"""Token ids to text, as they come: what is given out never has to be taken back.

A Detokenizer belongs to one answer. The text it gave out, joined, equals one decode of all its
tokens; half a character waits for its other half. U+FFFD stands only where the tokens really
hold no valid UTF-8.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Protocol

from hpcserve.tokenizer.backend import TokenizerBackend
from hpcserve.tokenizer.byte_level import TokenBytes, TokenTexts

_REPLACEMENT = "�"
_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class Detokenizer(Protocol):
    def add(self, token_id: int) -> str:
        """The text that this token made certain, often ""."""

    def add_all(self, token_ids: Iterable[int]) -> str:
        """`add` of each, joined."""

    def finish(self) -> str:
        """The rest: half a character that nothing completed."""


class ByteLevelDetokenizer:
    """For byte-level BPE: the bytes of the tokens in a row, decoded as UTF-8."""

    def __init__(
        self, token_bytes: TokenBytes, token_texts: TokenTexts, skipped: frozenset[int]
    ) -> None:
        self._bytes = token_bytes
        self._texts = token_texts
        self._skipped = skipped
        self._decoder = _Utf8Decoder("replace")
        self._half = False

    def add(self, token_id: int) -> str:
        if token_id in self._skipped:
            return ""
        # Nearly every token is whole characters, and nothing waits: no decoding at all.
        if not self._half and (text := self._texts[token_id]) is not None:
            return text
        text = self._decoder.decode(self._bytes[token_id])
        self._half = bool(self._decoder.getstate()[0])
        return text

    def add_all(self, token_ids: Iterable[int]) -> str:
        known, skipped = self._bytes, self._skipped
        data = b"".join([known[number] for number in token_ids if number not in skipped])
        text = self._decoder.decode(data)
        self._half = bool(self._decoder.getstate()[0])
        return text

    def finish(self) -> str:
        self._half = False
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer:
    """For every other kind: decodes a short window of tokens again, and gives out the growth.

    The window starts with tokens whose text is out already, so that rules about neighbours (the
    space that a sentence's first token loses) act on them and not on the new text. Where bytes
    fall back to tokens of their own, valid characters beside invalid bytes are kept, which one
    decode of everything may replace.
    """

    def __init__(self, backend: TokenizerBackend, skipped: frozenset[int]) -> None:
        self._backend = backend
        self._skipped = skipped
        self._window: list[int] = []
        self._num_out = 0
        self._text_out = ""

    def add(self, token_id: int) -> str:
        if token_id in self._skipped:
            return ""
        self._window.append(token_id)
        text = self._backend.decode(self._window, False)
        if text.endswith(_REPLACEMENT) or len(text) <= len(self._text_out):
            return ""
        return self._give_out(text)

    def add_all(self, token_ids: Iterable[int]) -> str:
        return "".join([self.add(number) for number in token_ids])

    def finish(self) -> str:
        text = self._backend.decode(self._window, False)
        return self._give_out(text) if len(text) > len(self._text_out) else ""

    def _give_out(self, text: str) -> str:
        delta = text[len(self._text_out) :]
        newest = self._window[self._num_out :]
        alone = self._backend.decode(newest, False)
        # Tokens without text of their own cannot take the first place in the window.
        if alone and not alone.startswith(_REPLACEMENT):
            self._window, text = newest, alone
        self._num_out = len(self._window)
        self._text_out = text
        return delta
