"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter, Request, Response

from hpcserve.outputs import RequestOutput
from hpcserve.protocol.adapter import (
    EngineInput,
    ResponseHead,
    completion_inputs,
    completion_response,
)
from hpcserve.protocol.body import parse_body
from hpcserve.protocol.chunks import DONE, completion_writer
from hpcserve.protocol.completion_stream import CompletionAnswerStream
from hpcserve.protocol.openai import CompletionBody
from hpcserve.protocol.responses import make_usage
from hpcserve.server.admission import complete_all, json_response, stream_all
from hpcserve.server.context import ServerContext, context_of
from hpcserve.server.openapi import takes
from hpcserve.server.sse import EventStream

router = APIRouter()


@router.post("/v1/completions", openapi_extra=takes(CompletionBody))
async def create_completion(request: Request) -> Response:
    """Continue each prompt."""
    context = context_of(request)
    data = await request.body()
    body = parse_body(CompletionBody, data)
    context.check_model(body.model)
    prompts = await context.tokenize(len(data), lambda: completion_inputs(body, context.tokenizer))
    head = ResponseHead.new("cmpl", context.model_name)
    if body.stream:
        news = await stream_all(request, context, prompts)
        return EventStream(_events(body, prompts, news, context, head))
    outputs = await complete_all(request, context, prompts)
    return json_response(completion_response(body, prompts, outputs, context.tokenizer, head))


async def _events(
    body: CompletionBody,
    prompts: list[EngineInput],
    news: AsyncGenerator[tuple[int, RequestOutput], None],
    context: ServerContext,
    head: ResponseHead,
) -> AsyncGenerator[bytes, None]:
    writer = completion_writer(head, include_usage=body.include_usage)
    answers = [
        [
            CompletionAnswerStream(
                body, prompt, number * prompt.params.n + n, writer, context.tokenizer
            )
            for n in range(prompt.params.n)
        ]
        for number, prompt in enumerate(prompts)
    ]
    num_output = 0
    num_cached = [0] * len(prompts)
    async with aclosing(news):
        async for number, output in news:
            num_cached[number] = output.num_cached_tokens
            for delta in output.outputs:
                answer = answers[number][delta.index]
                num_output += answer.num_tokens(delta)
                chunk = answer.write(delta, output.prompt_logprobs)
                if chunk:
                    yield chunk
    if body.include_usage:
        num_prompt = sum(len(prompt.prompt_token_ids) for prompt in prompts)
        yield writer.usage(make_usage(num_prompt, num_output, sum(num_cached)))
    yield DONE
