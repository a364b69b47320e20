"""Encoded conversations → rows of equal length, marks and token in one integer.

Each entry of a row is ``token | TRAINED | START``: the token's id, whether it counts in the loss,
and whether a document begins with it. Padding is a document of its own at the end of a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from hpcserve.demo.conversation import Conversation
from hpcserve.demo.render import END_OF_TEXT, render

__all__ = ["START", "TOKEN_MASK", "TRAINED", "encode", "pack"]

TOKEN_MASK = 0x3FFF
TRAINED = 0x4000
START = 0x8000
_OPEN_ROWS = 32

Row = NDArray[np.int32]


def encode(tokenizer: Tokenizer, conversations: list[Conversation]) -> list[Row]:
    """Return the marked tokens of each conversation (every fourth with sorted tool signatures)."""
    rendered = [render(one, sort_keys=index % 4 == 3) for index, one in enumerate(conversations)]
    texts = [segment.text for segments in rendered for segment in segments]
    encodings = iter(tokenizer.encode_batch_fast(texts, add_special_tokens=False))
    rows = []
    for segments in rendered:
        parts = [
            np.asarray(next(encodings).ids, dtype=np.int32) | (TRAINED if segment.trained else 0)
            for segment in segments
        ]
        row = np.concatenate(parts)
        row[0] |= START
        rows.append(row)
    return rows


def pack(
    tokenizer: Tokenizer, stream: Iterator[Conversation], length: int, rows: int
) -> NDArray[np.int32]:
    """Fill ``rows`` rows of ``length`` tokens from ``stream``; longer conversations are left out.

    Returns an array of shape (rows, length).
    """
    padding = tokenizer.token_to_id(END_OF_TEXT)
    packed = np.full((rows, length), padding, dtype=np.int32)
    done = 0
    open_rows: list[list[Row]] = []
    while True:
        for document in encode(tokenizer, list(islice(stream, 512))):
            if len(document) > length:
                continue
            fitting = [row for row in open_rows if _size(row) + len(document) <= length]
            if fitting:
                max(fitting, key=_size).append(document)
                continue
            if len(open_rows) == _OPEN_ROWS:
                fullest = max(range(_OPEN_ROWS), key=lambda index: _size(open_rows[index]))
                _write(packed[done], open_rows.pop(fullest))
                done += 1
                if done == rows:
                    return packed
            open_rows.append([document])


def _size(row: list[Row]) -> int:
    return sum(len(document) for document in row)


def _write(target: Row, documents: list[Row]) -> None:
    joined = np.concatenate(documents)
    target[: len(joined)] = joined
    if len(joined) < len(target):
        target[len(joined)] |= START
