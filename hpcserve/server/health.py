"""Whether it works, and small things for operators."""

from __future__ import annotations

import asyncio
import time

from fastapi import APIRouter, Request, Response

from hpcserve.engine.client import EngineClient
from hpcserve.errors import EngineError, QueueFullError
from hpcserve.sampling_params import SamplingParams
from hpcserve.server.context import context_of

router = APIRouter()

_GENERATE_TIMEOUT_S = 20.0
#: While others run, their tokens are waited for first: no request of one's own adds to the load.
_OTHERS_S = 1.0
#: Between two looks whether others got a token.
_LOOK_S = 0.05


@router.head("/health", include_in_schema=False)
@router.head("/ping", include_in_schema=False)
@router.get("/health")
@router.get("/ping")
async def health(request: Request) -> Response:
    """200 while the engine lives and requests are taken. Asks nobody, so it is fast."""
    context_of(request).client.check_admits()
    return Response()


@router.get("/health_generate")
async def health_generate(request: Request) -> Response:
    """200 if the engine makes a token within 20 s, for this request or for any other.

    Under load others wait before this one, and the queue may be full: that is no illness.
    """
    client = context_of(request).client
    client.check_admits()
    begun = time.perf_counter()
    others_until = begun + (_OTHERS_S if client.num_open else 0.0)
    while client.last_token_s < begun and time.perf_counter() < others_until:
        await asyncio.sleep(_LOOK_S)
    if client.last_token_s < begun:
        await _own_token(client, begun)
    return Response()


async def _own_token(client: EngineClient, begun: float) -> None:
    """Ask for one, until it is there or any other. Raises EngineError where none comes."""
    prompt = client.ready.eos_token_ids[:1] or [0]
    one = SamplingParams(max_tokens=1, temperature=0.0)
    own = asyncio.ensure_future(client.complete(prompt, one))
    try:
        while client.last_token_s < begun:
            if time.perf_counter() > begun + _GENERATE_TIMEOUT_S:
                raise EngineError(f"no token came in {_GENERATE_TIMEOUT_S:.0f} s")
            if not own.done():
                await asyncio.wait({own}, timeout=_LOOK_S)
            elif isinstance(own.exception(), QueueFullError):
                await asyncio.sleep(_LOOK_S)
            else:
                own.result()
    finally:
        own.cancel()
        await asyncio.gather(own, return_exceptions=True)


@router.get("/flush_cache", include_in_schema=False)
@router.post("/flush_cache")
async def flush_cache(request: Request) -> Response:
    """Drop every page of the KV cache that no request uses."""
    await context_of(request).client.flush_cache()
    return Response("Cache flushed.\n", media_type="text/plain")
