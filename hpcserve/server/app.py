"""The HTTP application around an engine client."""

from __future__ import annotations

import time

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from hpcserve._version import __version__
from hpcserve.config.server import ServerConfig
from hpcserve.engine.client import EngineClient
from hpcserve.engine.model_folder import served_name
from hpcserve.errors import HpcserveError, InvalidParameterError, RequestAbortedError
from hpcserve.log import get_logger
from hpcserve.server import (
    chat,
    completions,
    generate,
    health,
    metrics,
    models,
    profile,
    replicas,
    tokenize,
)
from hpcserve.server.admission import json_response
from hpcserve.server.auth import ApiKeyGuard
from hpcserve.server.body_limit import BodyLimit
from hpcserve.server.context import ServerContext, context_of
from hpcserve.server.refusal import error_response
from hpcserve.server.request_metrics import RequestMetrics

logger = get_logger(__name__)

_PARTS = (chat, completions, generate, models, health, metrics, tokenize, profile, replicas)


def create_app(client: EngineClient, options: ServerConfig | None = None) -> FastAPI:
    """An ASGI application; whoever made `client` closes it.

    options: of which those count that are about answers, not about sockets and processes.
    """
    options = options or ServerConfig()
    name = served_name(client.config, options.served_model_name)
    requests = RequestMetrics(name, len(client.replicas))
    client.observe(requests)
    app = FastAPI(title="hpcserve", version=__version__, docs_url="/docs", redoc_url=None)
    app.state.context = ServerContext(
        client, name, client.config.model.model, int(time.time()), options, requests
    )
    for part in _PARTS:
        app.include_router(part.router)
    app.add_exception_handler(HpcserveError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_wrong_path)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(Exception, _on_bug)
    # What is added last comes first: a browser's question what it may send carries no key.
    app.add_middleware(BodyLimit, max_bytes=options.max_body_bytes)
    if options.api_key:
        app.add_middleware(ApiKeyGuard, api_key=options.api_key)
    if options.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=[one.strip() for one in options.allowed_origins.split(",")],
            allow_methods=["*"],
            allow_headers=["*"],
        )
    return app


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HpcserveError)
    return error_response(context_of(request), error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Paths and methods that do not exist, in the same form as every other error."""
    assert isinstance(error, HTTPException)
    text = f"{request.method} {request.url.path}: {error.detail}"
    known = {
        "message": text,
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }
    context_of(request).metrics.on_refusal(error.status_code, None)
    response = json_response({"error": known}, error.status_code)
    response.headers.update(error.headers or {})  # which methods there are, for one
    return response


async def _on_wrong_path(request: Request, error: Exception) -> Response:
    """A part of a path that is of the wrong kind; bodies are checked by protocol."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    wrong = InvalidParameterError(str(first["loc"][-1]), str(first["msg"]))
    return error_response(context_of(request), wrong)


async def _on_disconnect(request: Request, error: Exception) -> Response:
    """A client that left before its body was complete: nobody reads this."""
    return Response(status_code=RequestAbortedError.http_status)


async def _on_bug(request: Request, error: Exception) -> Response:
    """What nobody foresaw; the HTTP server logs it."""
    text = f"internal error ({type(error).__name__}); the server's log has more"
    return error_response(context_of(request), HpcserveError(text))
