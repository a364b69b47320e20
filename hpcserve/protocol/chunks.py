"""The events of a stream as bytes.

One event per token and request: so all that does not change is written once per response.
"""

from __future__ import annotations

from typing import Any

import msgspec

from hpcserve.errors import HpcserveError
from hpcserve.protocol.adapter import ResponseHead
from hpcserve.protocol.responses import Usage, error_body

DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.Encoder().encode


def event(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + _encode(value) + b"\n\n"


def error_event(error: HpcserveError) -> bytes:
    return event(error_body(error))


class ChunkWriter:
    """Chunks of one response.

    kind: the chunks' `object`.  before, after: what stands around a choice's text.
    include_usage: then every chunk has a field usage, null but in the last one.
    """

    def __init__(
        self, head: ResponseHead, kind: str, before: bytes, after: bytes, *, include_usage: bool
    ) -> None:
        self._start = (
            b'data: {"id":' + _encode(head.id) + b',"object":' + _encode(kind) + b',"created":'
        ) + (_encode(head.created) + b',"model":' + _encode(head.model) + b',"choices":[')
        self._end = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._before = before
        self._text_end = after + b',"logprobs":null,"finish_reason":null}' + self._end
        self._text_starts: dict[int, bytes] = {}

    def text(self, index: int, text: str) -> bytes:
        """Only text: nearly every chunk is of this kind."""
        start = self._text_starts.get(index)
        if start is None:
            start = self._start + b'{"index":' + _encode(index) + self._before
            self._text_starts[index] = start
        return start + _encode(text) + self._text_end

    def choice(self, choice: dict[str, Any]) -> bytes:
        return self._start + _encode(choice) + self._end

    def usage(self, usage: Usage) -> bytes:
        """The last chunk: no choices, the counts."""
        return self._start + b'],"usage":' + _encode(usage) + b"}\n\n"


def chat_writer(head: ResponseHead, *, include_usage: bool) -> ChunkWriter:
    return ChunkWriter(
        head,
        "chat.completion.chunk",
        b',"delta":{"content":',
        b"}",
        include_usage=include_usage,
    )


def completion_writer(head: ResponseHead, *, include_usage: bool) -> ChunkWriter:
    return ChunkWriter(head, "text_completion", b',"text":', b"", include_usage=include_usage)
