"""From a body's prompts to running requests, with errors before the first byte of the answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
from fastapi import Request, Response

from hpcserve.engine.client import RequestStream
from hpcserve.outputs import RequestOutput
from hpcserve.protocol.adapter import EngineInput
from hpcserve.server.context import ServerContext
from hpcserve.server.disconnect import all_or_none, until_disconnect
from hpcserve.server.sse import merged, with_first


def json_response(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


async def complete_all(
    request: Request, context: ServerContext, prompts: list[EngineInput]
) -> list[RequestOutput]:
    """Whole outputs, in order. A client that leaves aborts them; so does one failure the rest."""
    client = context.client
    for prompt in prompts:
        client.check(prompt.prompt_token_ids, prompt.params)
    works = [
        client.complete(p.prompt_token_ids, p.params, priority=p.priority, name=p.name)
        for p in prompts
    ]
    return await until_disconnect(request.receive, all_or_none(works))


async def stream_all(
    request: Request, context: ServerContext, prompts: list[EngineInput]
) -> AsyncGenerator[tuple[int, RequestOutput], None]:
    """(number of the prompt, news), once the first news are there.

    Closing it aborts what still runs.
    """
    client = context.client
    for prompt in prompts:
        client.check(prompt.prompt_token_ids, prompt.params)
    streams: list[RequestStream] = []
    try:
        for p in prompts:
            streams.append(
                client.submit(p.prompt_token_ids, p.params, priority=p.priority, name=p.name)
            )
        first = await until_disconnect(request.receive, streams[0].__anext__())
    except BaseException:
        _abort(streams)
        raise
    return _news(streams, first)


async def _news(
    streams: list[RequestStream], first: RequestOutput
) -> AsyncGenerator[tuple[int, RequestOutput], None]:
    try:
        if len(streams) == 1:  # nearly always, and once per token: no generators in between
            yield 0, first
            async for output in streams[0]:
                yield 0, output
            return
        async with aclosing(merged([with_first(first, streams[0]), *streams[1:]])) as news:
            async for number, output in news:
                yield number, output
    finally:
        _abort(streams)


def _abort(streams: list[RequestStream]) -> None:
    for stream in streams:
        stream.abort()
