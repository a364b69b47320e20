"""The HTTP application around an engine client."""

from __future__ import annotations

import math
import time

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from hpcserve._version import __version__
from hpcserve.engine.client import EngineClient
from hpcserve.engine.model_folder import served_name
from hpcserve.errors import HpcserveError, OutOfTimeError, RequestAbortedError
from hpcserve.log import get_logger
from hpcserve.protocol.responses import error_body
from hpcserve.server import (
    chat,
    completions,
    generate,
    health,
    models,
    profile,
    replicas,
    tokenize,
)
from hpcserve.server.admission import json_response
from hpcserve.server.auth import ApiKeyGuard
from hpcserve.server.context import ServerContext

logger = get_logger(__name__)


def create_app(
    client: EngineClient, *, model_name: str | None = None, api_key: str | None = None
) -> FastAPI:
    """An ASGI application; whoever made `client` closes it.

    model_name: what clients call the model; default: the name of its folder.
    """
    path = client.config.model.model
    app = FastAPI(title="hpcserve", version=__version__, docs_url="/docs", redoc_url=None)
    app.state.context = ServerContext(
        client, served_name(client.config, model_name), path, int(time.time())
    )
    for part in (chat, completions, generate, models, health, tokenize, profile, replicas):
        app.include_router(part.router)
    app.add_exception_handler(HpcserveError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(Exception, _on_bug)
    if api_key:
        app.add_middleware(ApiKeyGuard, api_key=api_key)
    return app


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HpcserveError)
    response = json_response(error_body(error), error.http_status)
    if error.http_status == 503:
        seconds = error.retry_after_s if isinstance(error, OutOfTimeError) else 1.0
        response.headers["retry-after"] = str(math.ceil(seconds))
    return response


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
    return json_response({"error": known}, error.status_code)


async def _on_disconnect(request: Request, error: Exception) -> Response:
    """A client that left before its body was complete: nobody reads this."""
    return Response(status_code=RequestAbortedError.http_status)


async def _on_bug(request: Request, error: Exception) -> Response:
    """What nobody foresaw; the HTTP server logs it."""
    text = f"internal error ({type(error).__name__}); the server's log has more"
    return json_response(error_body(HpcserveError(text)), HpcserveError.http_status)
