"""Byte-level BPE: which bytes each token stands for.

GPT-2's alphabet writes every byte as one printable character: printable Latin-1 characters
stand for themselves, the others for U+0100 and up, in order (Radford et al. 2019).
"""

from __future__ import annotations

from typing import Protocol


class Vocabulary(Protocol):
    def id_to_token(self, token_id: int) -> str | None: ...


def byte_alphabet() -> dict[str, int]:
    """Character -> byte, all 256."""
    themselves = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(themselves)]
    alphabet = {chr(byte): byte for byte in themselves}
    alphabet |= {chr(0x100 + index): byte for index, byte in enumerate(others)}
    return alphabet


_ALPHABET = byte_alphabet()


def token_to_bytes(token: str) -> bytes:
    """Bytes of a token of the vocabulary.

    A token with a character outside the alphabet is an added one and stands for its own text.
    """
    try:
        return bytes([_ALPHABET[character] for character in token])
    except KeyError:
        return token.encode()


class TokenBytes(dict[int, bytes]):
    """Token id -> bytes, filled as tokens come up; an id outside the vocabulary has none."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    def __missing__(self, token_id: int) -> bytes:
        token = self._vocabulary.id_to_token(token_id)
        self[token_id] = found = b"" if token is None else token_to_bytes(token)
        return found


class TokenTexts(dict[int, str | None]):
    """Token id -> its text, None where its bytes are not whole characters."""

    def __init__(self, token_bytes: TokenBytes) -> None:
        self._token_bytes = token_bytes

    def __missing__(self, token_id: int) -> str | None:
        found: str | None
        try:
            found = self._token_bytes[token_id].decode()
        except UnicodeDecodeError:
            found = None
        self[token_id] = found
        return found
