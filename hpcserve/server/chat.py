"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

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
from hpcserve.server.sse import EventStream

router = APIRouter()


@router.post("/v1/chat/completions", openapi_extra=takes(ChatBody))
async def create_chat_completion(request: Request) -> Response:
    """Answer a conversation."""
    context = context_of(request)
    data = await request.body()
    body = parse_body(ChatBody, data)
    context.check_model(body.model)
    prompt = await context.tokenize(len(data), lambda: chat_input(body, context.tokenizer))
    head = ResponseHead.new("chatcmpl", context.model_name)
    if body.stream:
        news = await stream_all(request, context, [prompt])
        return EventStream(_events(body, prompt, news, context, head))
    [output] = await complete_all(request, context, [prompt])
    return json_response(chat_response(body, prompt, output, context.tokenizer, head))


async def _events(
    body: ChatBody,
    prompt: EngineInput,
    news: AsyncGenerator[tuple[int, RequestOutput], None],
    context: ServerContext,
    head: ResponseHead,
) -> AsyncGenerator[bytes, None]:
    writer = chat_writer(head, include_usage=body.include_usage)
    answers = [
        ChatAnswerStream(body, prompt, index, writer, context.tokenizer)
        for index in range(prompt.params.n)
    ]
    num_output = num_cached = 0
    async with aclosing(news):
        yield b"".join(answer.start() for answer in answers)
        async for _, output in news:
            num_cached = output.num_cached_tokens
            for delta in output.outputs:
                num_output += len(delta.token_ids)
                chunks = answers[delta.index].write(delta)
                if chunks:
                    yield chunks
    if body.include_usage:
        yield writer.usage(make_usage(len(prompt.prompt_token_ids), num_output, num_cached))
    yield DONE
