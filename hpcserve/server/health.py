"""Whether it works, and small things for operators."""

from __future__ import annotations

import asyncio
import time

from fastapi import APIRouter, Request, Response

from hpcserve.errors import EngineError, QueueFullError
from hpcserve.outputs import RequestOutput
from hpcserve.sampling_params import SamplingParams
from hpcserve.server.context import context_of

router = APIRouter()

_GENERATE_TIMEOUT_S = 20.0
#: Between two looks whether others got a token.
_LOOK_S = 0.1


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
    prompt = client.ready.eos_token_ids[:1] or [0]
    one = SamplingParams(max_tokens=1, temperature=0.0)
    begun = time.perf_counter()
    own = asyncio.ensure_future(client.complete(prompt, one))
    try:
        while client.last_token_s < begun:
            left = begun + _GENERATE_TIMEOUT_S - time.perf_counter()
            if left <= 0:
                raise EngineError(f"no token came in {_GENERATE_TIMEOUT_S:.0f} s")
            await _settle(own, min(left, _LOOK_S))
    finally:
        own.cancel()
        await asyncio.gather(own, return_exceptions=True)
    return Response()


async def _settle(own: asyncio.Future[RequestOutput], seconds: float) -> None:
    """Wait for `own`, at most so long. Raises what it raised, but for a queue that is full."""
    if own.done():
        await asyncio.sleep(seconds)
        return
    await asyncio.wait({own}, timeout=seconds)
    if own.done() and not isinstance(own.exception(), QueueFullError):
        own.result()


@router.get("/flush_cache", include_in_schema=False)
@router.post("/flush_cache")
async def flush_cache(request: Request) -> Response:
    """Drop every page of the KV cache that no request uses."""
    await context_of(request).client.flush_cache()
    return Response("Cache flushed.\n", media_type="text/plain")
