"""Whether it works, and small things for operators."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response

from hpcserve.errors import EngineError
from hpcserve.sampling_params import SamplingParams
from hpcserve.server.context import context_of

router = APIRouter()

_GENERATE_TIMEOUT_S = 20.0


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
    """200 if the engine makes one token within 20 s."""
    client = context_of(request).client
    prompt = client.ready.eos_token_ids[:1] or [0]
    one = SamplingParams(max_tokens=1, temperature=0.0)
    try:
        await asyncio.wait_for(client.complete(prompt, one), _GENERATE_TIMEOUT_S)
    except asyncio.TimeoutError:
        raise EngineError(f"no token came in {_GENERATE_TIMEOUT_S:.0f} s") from None
    return Response()


@router.get("/flush_cache", include_in_schema=False)
@router.post("/flush_cache")
async def flush_cache(request: Request) -> Response:
    """Drop every page of the KV cache that no request uses."""
    await context_of(request).client.flush_cache()
    return Response("Cache flushed.\n", media_type="text/plain")
