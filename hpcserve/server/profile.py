"""A torch profiler trace of the running engine."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from hpcserve import envs
from hpcserve.protocol.body import parse_body
from hpcserve.server.admission import json_response
from hpcserve.server.context import context_of
from hpcserve.server.openapi import takes

router = APIRouter()


class ProfileBody(BaseModel):
    """output_dir: a folder on the engine's machine; default: under HPCSERVE_STATE_DIR."""

    output_dir: str | None = None


@router.post("/start_profile", openapi_extra=takes(ProfileBody))
async def start_profile(request: Request) -> Response:
    """Record the engine's steps until /stop_profile."""
    body = parse_body(ProfileBody, await request.body() or b"{}")
    folder = Path(body.output_dir or envs.HPCSERVE_STATE_DIR.get() / "profiles").absolute()
    await context_of(request).client.start_profile(str(folder))
    return json_response({"output_dir": str(folder)})


@router.post("/stop_profile")
async def stop_profile(request: Request) -> Response:
    """End the recording; answers once the trace files are written."""
    return json_response({"files": await context_of(request).client.stop_profile()})
