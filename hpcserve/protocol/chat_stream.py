"""One answer of a chat as stream chunks."""

from __future__ import annotations

from typing import Any

from hpcserve.outputs import CompletionOutput
from hpcserve.protocol.adapter import EngineInput, reasoning_splitter
from hpcserve.protocol.chunks import ChunkWriter
from hpcserve.protocol.logprobs import chat_logprobs
from hpcserve.protocol.markers import ToolCallSplitter
from hpcserve.protocol.openai import ChatBody
from hpcserve.protocol.responses import ToolCall
from hpcserve.tokenizer.tokenizer import Tokenizer


class ChatAnswerStream:
    """Turns one answer's deltas into chunks: text, thinking, whole tool calls, the end."""

    def __init__(
        self,
        body: ChatBody,
        prompt: EngineInput,
        index: int,
        writer: ChunkWriter,
        tokenizer: Tokenizer,
    ) -> None:
        self._index = index
        self._writer = writer
        self._tokenizer = tokenizer
        self._reasoning = reasoning_splitter(body, prompt)
        self._tools = ToolCallSplitter() if body.offered_tools else None
        #: Whether its chunks, but the first and the last, are text as it comes.
        self.is_plain = self._reasoning is None and self._tools is None and not body.logprobs

    def start(self) -> bytes:
        """The chunk that says who speaks."""
        return self._chunk({"role": "assistant", "content": ""})

    def write(self, delta: CompletionOutput) -> bytes:
        """Chunks of one delta, one after the other."""
        if self.is_plain:
            chunks = self._writer.text(self._index, delta.text) if delta.text else b""
        else:
            chunks = self._split(delta)
        if delta.finish_reason is None:
            return chunks
        reason = delta.finish_reason
        if reason == "stop" and self._tools is not None and self._tools.num_calls:
            reason = "tool_calls"
        return chunks + self._chunk({}, finish_reason=reason, matched_stop=delta.stop_reason)

    def _split(self, delta: CompletionOutput) -> bytes:
        thinking, text = "", delta.text
        ended = delta.finish_reason is not None
        if self._reasoning is not None:
            thinking, text = self._reasoning.add(text)
            if ended:
                rest = self._reasoning.flush()
                thinking, text = thinking + rest[0], text + rest[1]
        first = 0 if self._tools is None else self._tools.num_calls
        calls: list[ToolCall] = []
        if self._tools is not None:
            text, calls = self._tools.add(text)
            text += self._tools.flush() if ended else ""
        fields: dict[str, Any] = {}
        if thinking:
            fields["reasoning_content"] = thinking
        if text:
            fields["content"] = text
        if calls:
            fields["tool_calls"] = [_call(first + n, call) for n, call in enumerate(calls)]
        if delta.logprobs:
            return self._chunk(fields, logprobs=chat_logprobs(delta.logprobs, self._tokenizer))
        return self._chunk(fields) if fields else b""

    def _chunk(self, delta: dict[str, Any], **more: Any) -> bytes:
        choice = {"index": self._index, "delta": delta, "logprobs": None, "finish_reason": None}
        return self._writer.choice(choice | more)


def _call(index: int, call: ToolCall) -> dict[str, Any]:
    return {"index": index, "id": call.id, "type": call.type, "function": call.function}
