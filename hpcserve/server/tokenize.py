"""POST /tokenize and /detokenize."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from hpcserve.errors import InvalidParameterError
from hpcserve.protocol.adapter import template_variables
from hpcserve.protocol.body import parse_body
from hpcserve.server.admission import json_response
from hpcserve.server.context import context_of
from hpcserve.server.openapi import takes
from hpcserve.tokenizer.tokenizer import Tokenizer

router = APIRouter()


class TokenizeBody(BaseModel):
    """A prompt (or several), or a conversation."""

    model: str | None = None
    prompt: str | list[str] | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeBody(BaseModel):
    model: str | None = None
    tokens: list[int] | list[list[int]]
    skip_special_tokens: bool | None = None


@router.post("/tokenize", openapi_extra=takes(TokenizeBody))
async def tokenize(request: Request) -> Response:
    context = context_of(request)
    data = await request.body()
    body = parse_body(TokenizeBody, data)
    context.check_model(body.model)
    tokens = await context.tokenize(len(data), lambda: _tokens(body, context.tokenizer))
    count = [len(one) for one in tokens] if isinstance(body.prompt, list) else len(tokens)
    return json_response(
        {
            "tokens": tokens,
            "count": count,
            "max_model_len": context.client.ready.context_length,
        }
    )


@router.post("/detokenize", openapi_extra=takes(DetokenizeBody))
async def detokenize(request: Request) -> Response:
    context = context_of(request)
    data = await request.body()
    body = parse_body(DetokenizeBody, data)
    context.check_model(body.model)
    several = bool(body.tokens) and isinstance(body.tokens[0], list)
    many: list[Any] = list(body.tokens) if several else [body.tokens]
    if any(not 0 <= token_id < 2**31 for ids in many for token_id in ids):
        raise InvalidParameterError("tokens", "a token id is out of range")
    skips, decode = body.skip_special_tokens is not False, context.tokenizer.decode
    texts = await context.tokenize(
        len(data), lambda: [decode(ids, skip_special_tokens=skips) for ids in many]
    )
    text: Any = texts if several else texts[0]
    return json_response({"text": text, "prompt": text})


def _tokens(body: TokenizeBody, tokenizer: Tokenizer) -> list[Any]:
    if (body.prompt is None) == (body.messages is None):
        raise InvalidParameterError("prompt", "give either prompt or messages")
    if body.messages is not None:
        return tokenizer.encode_chat(
            body.messages,
            tools=body.tools,
            add_generation_prompt=body.add_generation_prompt is not False,
            **template_variables(body.chat_template_kwargs),
        )
    special = body.add_special_tokens is not False
    if isinstance(body.prompt, list):
        return tokenizer.encode_batch(body.prompt, add_special_tokens=special)
    return tokenizer.encode(body.prompt or "", add_special_tokens=special)
