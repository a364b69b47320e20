"""The API key."""

from __future__ import annotations

import secrets

from starlette.types import ASGIApp, Receive, Scope, Send

from hpcserve.errors import HpcserveError
from hpcserve.server.refusal import refuse

#: Load balancers and Prometheus ask these, and have no key.
OPEN_PATHS = frozenset({"/health", "/ping", "/metrics"})


class InvalidKeyError(HpcserveError):
    http_status = 401
    error_type = "invalid_request_error"
    code = "invalid_api_key"


class ApiKeyGuard:
    """Answers 401 to a request without `Authorization: Bearer KEY`."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self._app = app
        self._key = api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            given = dict(scope["headers"]).get(b"authorization", b"")
            scheme, _, key = given.partition(b" ")
            if scheme.lower() != b"bearer" or not secrets.compare_digest(key.strip(), self._key):
                error = InvalidKeyError("the API key is missing or wrong")
                await refuse(scope, receive, send, error, {"www-authenticate": "Bearer"})
                return
        await self._app(scope, receive, send)
