"""What the client saw of one request."""

from __future__ import annotations

from array import array

import msgspec

UNKNOWN = -1


class RequestRecord(msgspec.Struct, array_like=True):
    """Times are seconds after the start of the run; UNKNOWN (-1) where nothing came.

    scheduled_s: when it was due.  sent_s: when its bytes went out.  end_s: the last byte.
    chunk_times: float64 seconds of every streamed chunk that carries tokens.
    prompt_tokens, output_tokens, cached_tokens: as the server counts them; UNKNOWN if it did not.
    error: "" where all went well, else one word (`http_503`, `broken_stream`, `timeout`, ...), and
    error_text says more.
    """

    index: int
    scheduled_s: float = UNKNOWN
    sent_s: float = UNKNOWN
    end_s: float = UNKNOWN
    chunk_times: bytes = b""
    prompt_tokens: int = UNKNOWN
    output_tokens: int = UNKNOWN
    cached_tokens: int = UNKNOWN
    finish_reason: str = ""
    text: str = ""
    error: str = ""
    error_text: str = ""

    @property
    def ok(self) -> bool:
        return not self.error

    def times(self) -> array[float]:
        """The chunks' times, as numbers."""
        return array("d", self.chunk_times)
