"""The replicas of a server with --dp: how each is, and taking one out of service for a while."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from hpcserve.server.admission import json_response
from hpcserve.server.context import ServerContext, context_of

router = APIRouter()


@router.get("/replicas")
async def list_replicas(request: Request) -> Response:
    """State, open requests, restarts and gauges of each replica."""
    return json_response({"replicas": await replica_list(context_of(request))})


@router.post("/replicas/{index}/drain")
async def drain_replica(request: Request, index: int) -> Response:
    """Give a replica no more requests. Its state goes from draining to drained as they end."""
    context = context_of(request)
    context.client.drain_replica(index)
    return json_response((await replica_list(context))[index])


@router.post("/replicas/{index}/resume")
async def resume_replica(request: Request, index: int) -> Response:
    """Give a drained replica requests again."""
    context = context_of(request)
    context.client.resume_replica(index)
    return json_response((await replica_list(context))[index])


async def replica_list(context: ServerContext) -> list[dict[str, Any]]:
    """The replicas as JSON objects with the fields of ReplicaStatus."""
    return [
        {**asdict(one), "load": None if one.load is None else msgspec.structs.asdict(one.load)}
        for one in await context.client.replica_status()
    ]
