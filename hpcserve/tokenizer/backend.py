"""What does the work behind a Tokenizer: the `tokenizers` library, or transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer as RustTokenizer
from tokenizers.processors import TemplateProcessing

from hpcserve.errors import TokenizerError
from hpcserve.tokenizer.files import TOKENIZER_FILE, special_tokens


class TokenizerBackend(Protocol):
    vocab_size: int
    #: Ids that `skip_special_tokens` leaves out.
    special_ids: frozenset[int]
    #: Whether a text's bytes are the bytes of its tokens, put together.
    is_byte_level: bool

    def encode(self, text: str, add_special_tokens: bool) -> list[int]: ...

    def encode_batch(self, texts: list[str], add_special_tokens: bool) -> list[list[int]]: ...

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str: ...

    def id_to_token(self, token_id: int) -> str | None: ...

    def token_to_id(self, token: str) -> int | None: ...


class FastBackend:
    """tokenizer.json through the `tokenizers` library."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        path = folder / TOKENIZER_FILE
        try:
            self._inner = RustTokenizer.from_file(str(path))
        # The library raises plain Exception for a file that it does not understand.
        except Exception as error:
            raise TokenizerError(f"cannot read {path}: {error}") from error
        self._inner.no_truncation()
        self._inner.no_padding()
        self._add_missing_bos(folder, config)
        self.vocab_size = self._inner.get_vocab_size(with_added_tokens=True)
        added = self._inner.get_added_tokens_decoder()
        self.special_ids = frozenset(number for number, token in added.items() if token.special)
        self.is_byte_level = _decodes_bytes(json.loads(self._inner.to_str()).get("decoder"))

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self._inner.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def encode_batch(self, texts: list[str], add_special_tokens: bool) -> list[list[int]]:
        found = self._inner.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
        return [encoding.ids for encoding in found]

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
        text: str = self._inner.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text

    def id_to_token(self, token_id: int) -> str | None:
        token: str | None = self._inner.id_to_token(token_id)
        return token

    def token_to_id(self, token: str) -> int | None:
        token_id: int | None = self._inner.token_to_id(token)
        return token_id

    def _add_missing_bos(self, folder: Path, config: dict[str, Any]) -> None:
        # Llama-class checkpoints may promise a BOS that their tokenizer.json does not add;
        # transformers then adds it, and the model was trained with it.
        kind = str(config.get("tokenizer_class", ""))
        bos = special_tokens(folder, config).get("bos_token")
        bos_id = self._inner.token_to_id(bos) if bos else None
        if not (config.get("add_bos_token") and kind.startswith("Llama")) or bos_id is None:
            return
        if bos_id not in self._inner.encode("a").ids:
            self._inner.post_processor = TemplateProcessing(
                single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, bos_id)]
            )


class TransformersBackend:
    """Whatever AutoTokenizer makes of a folder without tokenizer.json. Slow to import."""

    def __init__(self, folder: Path, *, trust_remote_code: bool) -> None:
        from transformers import AutoTokenizer

        try:
            self._inner: Any = AutoTokenizer.from_pretrained(
                str(folder), trust_remote_code=trust_remote_code, local_files_only=True
            )
        except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise TokenizerError(f"no tokenizer can be loaded from {folder}: {reason}") from error
        self.vocab_size = len(self._inner)
        self.special_ids = frozenset(self._inner.all_special_ids)
        self.is_byte_level = False

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self._inner.encode(text, add_special_tokens=add_special_tokens)
        return ids

    def encode_batch(self, texts: list[str], add_special_tokens: bool) -> list[list[int]]:
        return [self.encode(text, add_special_tokens) for text in texts]

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
        text: str = self._inner.decode(
            list(token_ids),
            skip_special_tokens=skip_special_tokens,
            clean_up_tokenization_spaces=False,
        )
        return text

    def id_to_token(self, token_id: int) -> str | None:
        token: str | None = self._inner.convert_ids_to_tokens(token_id)
        return token

    def token_to_id(self, token: str) -> int | None:
        token_id: int | None = self._inner.get_vocab().get(token)
        return token_id


def _decodes_bytes(decoder: dict[str, Any] | None) -> bool:
    if decoder is None:
        return False
    if decoder["type"] == "Sequence":
        return len(decoder["decoders"]) == 1 and _decodes_bytes(decoder["decoders"][0])
    return bool(decoder["type"] == "ByteLevel")
