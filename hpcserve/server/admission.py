"""From a body's prompts to running requests, with errors before the first byte of the answer."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import msgspec
from fastapi import Request, Response

from hpcserve.engine.client import RequestStream
from hpcserve.outputs import RequestOutput
from hpcserve.protocol.adapter import EngineInput
from hpcserve.protocol.blame import blames
from hpcserve.server.context import ServerContext
from hpcserve.server.disconnect import all_or_none, until_disconnect
from hpcserve.server.sse import OpenStreams


def json_response(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


async def complete_all(
    request: Request, context: ServerContext, prompts: list[EngineInput]
) -> list[RequestOutput]:
    """Whole outputs, in order. A client that leaves aborts them; so does one failure the rest."""
    client = context.client
    _check(context, prompts)

    async def complete(p: EngineInput) -> RequestOutput:
        with blames(p.field, p.grammar_field):
            return await client.complete(
                p.prompt_token_ids, p.params, priority=p.priority, name=p.name
            )

    works = [complete(p) for p in prompts]
    return await until_disconnect(request.receive, all_or_none(works))


async def stream_all(
    request: Request, context: ServerContext, prompts: list[EngineInput]
) -> OpenStreams:
    """The prompts' running requests, once the first news are there.

    So an error that comes instead of them still gets a status of its own.
    """
    client = context.client
    _check(context, prompts)
    streams: list[RequestStream] = []
    with ExitStack() as aborts:
        for p in prompts:
            stream = client.submit(p.prompt_token_ids, p.params, priority=p.priority, name=p.name)
            aborts.callback(stream.abort)
            streams.append(stream)
        with blames(prompts[0].field, prompts[0].grammar_field):
            first = await until_disconnect(request.receive, anext(streams[0]))
        aborts.pop_all()
    return OpenStreams(streams, first, context.flusher)


def _check(context: ServerContext, prompts: list[EngineInput]) -> None:
    """Raises what refuses one of the prompts, before any of them runs."""
    for prompt in prompts:
        with blames(prompt.field):
            context.client.check(prompt.prompt_token_ids, prompt.params)
    pace = context.client.pace
    context.time_left.check(max(pace.seconds_for(prompt.params) for prompt in prompts))
