"""Tells OpenAPI readers what an endpoint takes; bodies are parsed by protocol, not by FastAPI."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


def takes(kind: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` of an endpoint whose body is a `kind`."""
    schema = kind.model_json_schema()
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
