"""POST /v1/completions."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from hpcserve.outputs import RequestOutput, TokenLogprob
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
from hpcserve.server.sse import EventStream, PlainText

router = APIRouter()


@router.post("/v1/completions", openapi_extra=takes(CompletionBody))
async def create_completion(request: Request) -> Response:
    """Continue each prompt."""
    context = context_of(request)
    data = await request.body()
    body = parse_body(CompletionBody, data)
    context.check_model(body.model)
    defaults = context.client.sampling_defaults
    prompts = await context.tokenize(
        len(data), lambda: completion_inputs(body, context.tokenizer, defaults)
    )
    head = ResponseHead.new("cmpl", context.model_name)
    if body.stream:
        streams = await stream_all(request, context, prompts)
        return EventStream(streams, _Events(body, prompts, context, head))
    outputs = await complete_all(request, context, prompts)
    return json_response(completion_response(body, prompts, outputs, context.tokenizer, head))


class _Events:
    """The answers to some prompts as events; what the usage needs is counted here."""

    def __init__(
        self,
        body: CompletionBody,
        prompts: list[EngineInput],
        context: ServerContext,
        head: ResponseHead,
    ) -> None:
        self._writer = completion_writer(head, include_usage=body.include_usage)
        self._include_usage = body.include_usage
        self._num_prompt = sum(len(prompt.prompt_token_ids) for prompt in prompts)
        self._answers = [
            [
                CompletionAnswerStream(
                    body, prompt, number * prompt.params.n + n, self._writer, context.tokenizer
                )
                for n in range(prompt.params.n)
            ]
            for number, prompt in enumerate(prompts)
        ]
        #: By number of the prompt: told once, and echoed before each of its answers.
        self._prompt_logprobs: dict[int, list[TokenLogprob]] = {}
        self._num_output = 0
        self._num_cached = [0] * len(prompts)
        is_one = len(prompts) == 1 and prompts[0].params.n == 1
        is_plain = is_one and self._answers[0][0].is_plain
        self.plain_text: PlainText | None = self._plain_text if is_plain else None

    def _plain_text(self, text: str, num_tokens: int) -> bytes:
        self._num_output += num_tokens
        return self._writer.text(0, text)

    def start(self) -> bytes:
        return b""

    def write(self, number: int, output: RequestOutput) -> bytes:
        self._num_cached[number] = output.num_cached_tokens
        if output.prompt_logprobs is not None:
            self._prompt_logprobs[number] = output.prompt_logprobs
        chunks = b""
        for delta in output.outputs:
            answer = self._answers[number][delta.index]
            self._num_output += answer.num_tokens(delta)
            chunks += answer.write(delta, self._prompt_logprobs.get(number))
        return chunks

    def end(self) -> bytes:
        if not self._include_usage:
            return DONE
        usage = make_usage(self._num_prompt, self._num_output, sum(self._num_cached))
        return self._writer.usage(usage) + DONE
