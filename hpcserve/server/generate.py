"""SGLang's native API: POST /generate, and aborting by id."""

from __future__ import annotations

import itertools
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from hpcserve.outputs import CompletionOutput, RequestOutput
from hpcserve.protocol.adapter import EngineInput, generate_inputs, generate_response
from hpcserve.protocol.body import parse_body
from hpcserve.protocol.chunks import DONE, event
from hpcserve.protocol.generate import GenerateBody
from hpcserve.server.admission import complete_all, json_response, stream_all
from hpcserve.server.context import ServerContext, context_of
from hpcserve.server.openapi import takes
from hpcserve.server.sse import EventStream, PlainText

router = APIRouter()


class AbortBody(BaseModel):
    rid: str | None = None
    abort_all: bool = False


@router.put("/generate", include_in_schema=False)
@router.post("/generate", openapi_extra=takes(GenerateBody))
async def generate(request: Request) -> Response:
    """Continue one prompt or several, given as text or as token ids."""
    context = context_of(request)
    data = await request.body()
    body = parse_body(GenerateBody, data)
    prompts = await context.tokenize(len(data), lambda: generate_inputs(body, context.tokenizer))
    if body.stream:
        streams = await stream_all(request, context, prompts)
        return EventStream(streams, _Events(body, prompts, context))
    outputs = await complete_all(request, context, prompts)
    answers = [
        answer
        for number, output in enumerate(outputs)
        for answer in generate_response(body, number, output, context.tokenizer)
    ]
    is_one = body.is_single and len(answers) == 1
    return json_response(answers[0] if is_one else answers)


@router.post("/abort_request", openapi_extra=takes(AbortBody))
async def abort_request(request: Request) -> Response:
    """End a running request by its rid, or all of them."""
    context = context_of(request)
    body = parse_body(AbortBody, await request.body())
    if body.abort_all:
        count = context.client.abort_all()
    else:
        count = int(body.rid is not None and context.client.abort(body.rid))
    return json_response({"num_aborted": count})


class _Events:
    """Every event carries an answer from its beginning, as this API's clients expect."""

    plain_text: PlainText | None = None

    def __init__(
        self, body: GenerateBody, prompts: list[EngineInput], context: ServerContext
    ) -> None:
        self._body = body
        self._tokenizer = context.tokenizer
        self._whole = {
            (number, index): CompletionOutput(index)
            for number, prompt in enumerate(prompts)
            for index in range(prompt.params.n)
        }
        #: Number of a prompt -> place of its first answer among all.
        self._first = [0, *itertools.accumulate(prompt.params.n for prompt in prompts)]
        self._several = len(self._whole) > 1 or not body.is_single
        self._prompt_logprobs: dict[int, Any] = {}

    def start(self) -> bytes:
        return b""

    def write(self, number: int, output: RequestOutput) -> bytes:
        if output.prompt_logprobs is not None:
            self._prompt_logprobs[number] = output.prompt_logprobs
        output.prompt_logprobs = self._prompt_logprobs.get(number)
        for place, delta in enumerate(output.outputs):
            output.outputs[place] = _grow(self._whole[number, delta.index], delta)
        made = generate_response(self._body, number, output, self._tokenizer)
        events = b""
        for answer, fields in zip(output.outputs, made, strict=True):
            if self._several:
                fields["index"] = self._first[number] + answer.index
            events += event(fields)
        return events

    def end(self) -> bytes:
        return DONE


def _grow(whole: CompletionOutput, delta: CompletionOutput) -> CompletionOutput:
    whole.text += delta.text
    whole.token_ids = [*whole.token_ids, *delta.token_ids]
    whole.finish_reason, whole.stop_reason = delta.finish_reason, delta.stop_reason
    if delta.logprobs is not None:
        whole.logprobs = [*(whole.logprobs or ()), *delta.logprobs]
    return whole
