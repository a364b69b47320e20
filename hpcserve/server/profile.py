"""A torch profiler trace of the running engine."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from hpcserve.errors import HpcserveError, InvalidParameterError
from hpcserve.protocol.body import parse_body
from hpcserve.server.admission import json_response
from hpcserve.server.context import context_of
from hpcserve.server.openapi import takes

router = APIRouter()


class ProfileBody(BaseModel):
    """output_dir: a folder in that of --profile-dir, by its path there or its whole path."""

    output_dir: str | None = None


class ProfilingOffError(HpcserveError):
    http_status = 403
    error_type = "invalid_request_error"
    code = "profiling_off"


@router.post("/start_profile", openapi_extra=takes(ProfileBody))
async def start_profile(request: Request) -> Response:
    """Record the engine's steps until /stop_profile."""
    context = context_of(request)
    body = parse_body(ProfileBody, await request.body() or b"{}")
    if not context.options.profile_dir:
        raise ProfilingOffError(
            "this server takes no profiles: it was started without --profile-dir, the folder that "
            "they may be written to"
        )
    folder = profile_folder(Path(context.options.profile_dir), body.output_dir or "")
    await context.client.start_profile(str(folder))
    return json_response({"output_dir": str(folder)})


@router.post("/stop_profile")
async def stop_profile(request: Request) -> Response:
    """End the recording; answers once the trace files are written."""
    return json_response({"files": await context_of(request).client.stop_profile()})


def profile_folder(allowed: Path, asked: str) -> Path:
    """The folder that a client asks for. Raises InvalidParameterError for one outside of `allowed`.

    Links are followed before it is decided, so none leads out.
    """
    root = allowed.expanduser().resolve()
    try:
        folder = (root / asked).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a loop of links, a null character
        raise InvalidParameterError("output_dir", f"{asked!r} is no path: {error}") from error
    if not folder.is_relative_to(root):
        raise InvalidParameterError(
            "output_dir", f"{asked!r} is not in {root}, where profiles are written (--profile-dir)"
        )
    return folder
