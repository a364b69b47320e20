"""Which model is served, and how."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from hpcserve._version import __version__
from hpcserve.protocol.responses import ModelCard
from hpcserve.server.admission import json_response
from hpcserve.server.context import ServerContext, context_of
from hpcserve.server.replicas import replica_list

router = APIRouter()


@router.get("/v1/models")
async def list_models(request: Request) -> Response:
    return json_response({"object": "list", "data": [_card(context_of(request))]})


@router.get("/v1/models/{name:path}")
async def retrieve_model(request: Request, name: str) -> Response:
    context = context_of(request)
    context.check_model(name)
    return json_response(_card(context))


@router.get("/get_model_info")
@router.get("/model_info")
async def model_info(request: Request) -> Response:
    context = context_of(request)
    return json_response(
        {
            "model_path": context.model_path,
            "tokenizer_path": context.client.config.model.tokenizer or context.model_path,
            "is_generation": True,
        }
    )


@router.get("/get_server_info")
@router.get("/server_info")
async def server_info(request: Request) -> Response:
    """Every option, what the engine made of them, and its gauges."""
    context = context_of(request)
    return json_response(
        {
            **context.client.config.to_options(),
            "served_model_name": context.model_name,
            "version": __version__,
            "engine": msgspec.structs.asdict(context.client.ready),
            "load": await _load(context),
            "replicas": await replica_list(context),
        }
    )


@router.get("/v1/loads")
@router.get("/load")
async def load(request: Request) -> Response:
    """Gauges and counters of the engine."""
    return json_response(await _load(context_of(request)))


@router.get("/version")
async def version() -> Response:
    return json_response({"version": __version__})


async def _load(context: ServerContext) -> dict[str, Any]:
    return msgspec.structs.asdict(await context.client.stats())


def _card(context: ServerContext) -> ModelCard:
    return ModelCard(
        context.model_name,
        context.started_s,
        context.model_path,
        context.client.ready.context_length,
    )
