"""Errors as answers, in OpenAI's form, and counted."""

from __future__ import annotations

import math

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from hpcserve.errors import HpcserveError, OutOfTimeError
from hpcserve.protocol.responses import error_body
from hpcserve.server.admission import json_response
from hpcserve.server.context import ServerContext


def error_response(context: ServerContext, error: HpcserveError) -> Response:
    response = json_response(error_body(error), error.http_status)
    if error.http_status == 503:
        seconds = error.retry_after_s if isinstance(error, OutOfTimeError) else 1.0
        response.headers["retry-after"] = str(math.ceil(seconds))
    context.metrics.on_refusal(error.http_status, error.code)
    return response


async def refuse(
    scope: Scope,
    receive: Receive,
    send: Send,
    error: HpcserveError,
    headers: dict[str, str] | None = None,
) -> None:
    """Answer a request that does not get as far as the application's own handlers."""
    response = error_response(scope["app"].state.context, error)
    response.headers.update(headers or {})
    await response(scope, receive, send)
