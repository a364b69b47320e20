"""Text to token ids and back, for one checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpcserve.errors import ContextLengthError, InvalidParameterError, ModelNotFoundError
from hpcserve.tokenizer.backend import FastBackend, TokenizerBackend, TransformersBackend
from hpcserve.tokenizer.byte_level import TokenBytes, TokenTexts
from hpcserve.tokenizer.chat_template import ChatTemplate, find_templates
from hpcserve.tokenizer.detokenizer import ByteLevelDetokenizer, Detokenizer, WindowDetokenizer
from hpcserve.tokenizer.files import CONFIG_FILE, TOKENIZER_FILE, read_json, special_tokens

_NOTHING: frozenset[int] = frozenset()
#: Prose and code have about half as many.
_CHARACTERS_PER_TOKEN = 8
_CUT_MARGIN, _CUT_TOKENS = 1.02, 64


class Tokenizer:
    """Safe to use from several threads; its detokenizers are not."""

    def __init__(
        self, backend: TokenizerBackend, special: dict[str, str], template: ChatTemplate
    ) -> None:
        self.backend = backend
        #: Role -> text, such as {"eos_token": "<|im_end|>"}.
        self.special_tokens = special
        self.chat_template = template
        self.vocab_size = backend.vocab_size
        self.special_ids = backend.special_ids
        eos = special.get("eos_token")
        self.eos_token_id = None if eos is None else backend.token_to_id(eos)
        #: Most tokens that anybody could use, where that is known: longer text is not even read.
        self.max_tokens: int | None = None
        self._bytes = TokenBytes(backend)
        self._texts = TokenTexts(self._bytes)

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        chat_template: Path | None = None,
        trust_remote_code: bool = False,
    ) -> Tokenizer:
        """Read the tokenizer of a model folder.

        chat_template: a jinja file to use instead of the checkpoint's.
        Raises ModelNotFoundError (no folder), TokenizerError (unusable).
        """
        if not folder.is_dir():
            raise ModelNotFoundError(f"there is no model folder {folder}")
        config: dict[str, Any] = read_json(folder / CONFIG_FILE)
        backend: TokenizerBackend
        if (folder / TOKENIZER_FILE).is_file():
            backend = FastBackend(folder, config)
        else:
            backend = TransformersBackend(folder, trust_remote_code=trust_remote_code)
        special = special_tokens(folder, config)
        templates = find_templates(folder, config, replacement=chat_template)
        return cls(backend, special, ChatTemplate(templates, special))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids; with special tokens, what the checkpoint puts around a prompt (its BOS).

        Raises ContextLengthError for a text that is far longer than `max_tokens`,
        InvalidParameterError for one with half a surrogate pair, which JSON can spell.
        """
        try:
            self._check_length(text)
            return self.backend.encode(text, add_special_tokens)
        except (TypeError, UnicodeEncodeError) as error:
            raise _no_text([text], error) from error

    def encode_batch(self, texts: list[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        """`encode` of each, on all cores where the library can."""
        try:
            for text in texts:
                self._check_length(text)
            return self.backend.encode_batch(texts, add_special_tokens)
        except (TypeError, UnicodeEncodeError) as error:
            raise _no_text(texts, error) from error

    def _check_length(self, text: str) -> None:
        """Refuse a text that is far too long, without tokenising it all: a file of some megabytes,
        sent by mistake, would keep a core busy for a minute."""
        if self.max_tokens is None:
            return
        head = text[: _CHARACTERS_PER_TOKEN * self.max_tokens]
        if len(head) == len(text):
            return
        count = len(self.backend.encode(head, False))
        # Where the text is cut, a few tokens may be others than in the whole.
        if count > self.max_tokens * _CUT_MARGIN + _CUT_TOKENS:
            raise ContextLengthError(count, None, self.max_tokens, at_least=True)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return self.backend.decode(token_ids, skip_special_tokens)

    def detokenizer(self, *, skip_special_tokens: bool = True) -> Detokenizer:
        """A fresh one, for one answer."""
        skipped = self.special_ids if skip_special_tokens else _NOTHING
        if self.backend.is_byte_level:
            return ByteLevelDetokenizer(self._bytes, self._texts, skipped)
        return WindowDetokenizer(self.backend, skipped)

    def token_text(self, token_id: int) -> str:
        """One token as text, for lists of log-probabilities; bytes of half a character show as
        U+FFFD."""
        if self.backend.is_byte_level:
            return self.token_bytes(token_id).decode(errors="replace")
        return self.backend.decode([token_id], False)

    def token_bytes(self, token_id: int) -> bytes:
        """One token's bytes; of a tokenizer that is not byte-level, of its text."""
        if self.backend.is_byte_level:
            return self._bytes[token_id]
        return self.token_text(token_id).encode()

    def encode_chat(
        self,
        messages: list[dict[str, Any]],
        /,
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> list[int]:
        """A conversation as the model reads it. Raises as ChatTemplate.render does."""
        text = self.chat_template.render(
            messages, tools=tools, add_generation_prompt=add_generation_prompt, **variables
        )
        # The template writes BOS itself, where the model wants one.
        return self.encode(text, add_special_tokens=False)


def _no_text(texts: list[str], error: Exception) -> Exception:
    """Why a library could not take these texts: libraries say no more than that they are no text."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as half:
            code = ord(text[half.start])
            return InvalidParameterError(
                "prompt", f"half a surrogate pair (U+{code:04X}) at character {half.start}"
            )
    return error
