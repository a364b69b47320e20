"""POST /v1/chat/completions."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from hpcserve.outputs import RequestOutput
from hpcserve.protocol.adapter import EngineInput, ResponseHead, chat_input, chat_response
from hpcserve.protocol.body import parse_body
from hpcserve.protocol.chat_stream import ChatAnswerStream
from hpcserve.protocol.chunks import DONE, chat_writer
from hpcserve.protocol.openai import ChatBody
from hpcserve.protocol.responses import make_usage
from hpcserve.server.admission import complete_all, json_response, stream_all
from hpcserve.server.context import ServerContext, context_of
from hpcserve.server.openapi import takes
from hpcserve.server.sse import EventStream, PlainText

router = APIRouter()


@router.post("/v1/chat/completions", openapi_extra=takes(ChatBody))
async def create_chat_completion(request: Request) -> Response:
    """Answer a conversation."""
    context = context_of(request)
    data = await request.body()
    body = parse_body(ChatBody, data)
    context.check_model(body.model)
    defaults = context.client.sampling_defaults
    prompt = await context.tokenize(
        len(data), lambda: chat_input(body, context.tokenizer, defaults)
    )
    head = ResponseHead.new("chatcmpl", context.model_name)
    if body.stream:
        streams = await stream_all(request, context, [prompt])
        return EventStream(streams, _Events(body, prompt, context, head))
    [output] = await complete_all(request, context, [prompt])
    return json_response(chat_response(body, prompt, output, context.tokenizer, head))


class _Events:
    """A chat's answers as events; what has to be counted for the usage is counted here."""

    def __init__(
        self, body: ChatBody, prompt: EngineInput, context: ServerContext, head: ResponseHead
    ) -> None:
        self._writer = chat_writer(head, include_usage=body.include_usage)
        self._include_usage = body.include_usage
        self._num_prompt = len(prompt.prompt_token_ids)
        self._answers = [
            ChatAnswerStream(body, prompt, index, self._writer, context.tokenizer)
            for index in range(prompt.params.n)
        ]
        self._num_output = self._num_cached = 0
        is_plain = len(self._answers) == 1 and self._answers[0].is_plain
        self.plain_text: PlainText | None = self._plain_text if is_plain else None

    def _plain_text(self, text: str, num_tokens: int) -> bytes:
        self._num_output += num_tokens
        return self._writer.text(0, text)

    def start(self) -> bytes:
        return b"".join(answer.start() for answer in self._answers)

    def write(self, number: int, output: RequestOutput) -> bytes:
        self._num_cached = output.num_cached_tokens
        chunks = b""
        for delta in output.outputs:
            self._num_output += len(delta.token_ids)
            chunks += self._answers[delta.index].write(delta)
        return chunks

    def end(self) -> bytes:
        if not self._include_usage:
            return DONE
        usage = make_usage(self._num_prompt, self._num_output, self._num_cached)
        return self._writer.usage(usage) + DONE
