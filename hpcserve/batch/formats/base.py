"""The contract of a batch format: a stream of raw rows in, a line of bytes per answer out.

A format is one module of this package, named as the ending of its files, with the classes
`Reader` and `Writer`. Reading is cheap and in order; `decode` may be slow, runs in several
threads at once, and is where a row turns out to be malformed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from hpcserve.batch.files import InputFile


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as it lies in the input.

    line: where a user finds it, from 1.  num_bytes: its share of the input, for the progress.
    """

    line: int
    num_bytes: int
    payload: Any


class MalformedRowError(ValueError):
    """This row cannot be decoded; it becomes an error line of the output."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class BatchReader(ABC):
    """Rows of one input, in order, without holding more than a few of them."""

    def __init__(self, source: InputFile) -> None:
        self.source = source
        #: Rows without content, which are no rows of the batch.
        self.num_blank = 0

    @abstractmethod
    def __iter__(self) -> Iterator[RawRow]:
        """Raises InputError where the file cannot be read on."""

    @abstractmethod
    def decode(self, row: RawRow) -> Mapping[str, Any]:
        """The row's fields. Raises MalformedRowError."""


class BatchWriter(ABC):
    """Answers as bytes of an output file."""

    #: Written before the first answer.
    header: ClassVar[bytes] = b""

    @abstractmethod
    def encode(self, record: Mapping[str, Any]) -> bytes:
        """One answer, ready to be appended."""
