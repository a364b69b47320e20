"""One completion over HTTP: the request's bytes, and the record of what came back."""

from __future__ import annotations

from typing import Any

import msgspec

from hpcserve.bench.connection import Response, Target
from hpcserve.bench.record import UNKNOWN, RequestRecord
from hpcserve.bench.request import BenchRequest

PATH = "/v1/completions"
_ERROR_TEXT_LENGTH = 300


class RequestStyle(msgspec.Struct, kw_only=True):
    """What all requests of a run share.

    usage: ask for the token counts at the end of a stream (`stream_options`).
    """

    model: str
    stream: bool = True
    temperature: float = 0.0
    top_p: float = 1.0
    usage: bool = True
    extra_body: dict[str, Any] = {}
    headers: dict[str, str] = {}


def encode(request: BenchRequest, style: RequestStyle, target: Target) -> bytes:
    """Head and body of the HTTP request."""
    body: dict[str, Any] = {
        "model": style.model,
        "prompt": request.prompt_token_ids if request.prompt is None else request.prompt,
        "max_tokens": request.max_tokens,
        "temperature": style.temperature,
        "stream": style.stream,
    }
    if style.top_p != 1.0:
        body["top_p"] = style.top_p
    if request.ignore_eos:
        body["ignore_eos"] = True
    if style.stream and style.usage:
        body["stream_options"] = {"include_usage": True}
    encoded = msgspec.json.encode({**body, **style.extra_body, **request.body})
    return target.head("POST", PATH, style.headers, len(encoded)) + encoded


def fill_record(record: RequestRecord, response: Response, broken: str, *, keep_text: bool) -> None:
    """Enter what came. `broken` says how the exchange failed, "" where it did not."""
    sse = response.sse
    if sse is not None:
        record.chunk_times = sse.times.tobytes()
    if response.status not in (0, 200):
        record.error = f"http_{response.status}"
        record.error_text = b"".join(response.body)[:_ERROR_TEXT_LENGTH].decode(errors="replace")
    elif broken:
        record.error = "broken_stream" if response.status else "connection"
        record.error_text = broken
    elif sse is not None and not response.body:
        _fill_from_stream(record, response, keep_text=keep_text)
    else:
        _fill_from_body(record, b"".join(response.body), keep_text=keep_text)


def _fill_from_stream(record: RequestRecord, response: Response, *, keep_text: bool) -> None:
    sse = response.sse
    assert sse is not None
    if sse.error:
        record.error = "error_event"
        record.error_text = sse.error[:_ERROR_TEXT_LENGTH].decode(errors="replace")
        return
    if not sse.done:
        record.error = "broken_stream"
        record.error_text = "the stream ended without [DONE]"
        return
    try:
        if sse.usage_event:
            _enter_usage(record, msgspec.json.decode(sse.usage_event))
        if sse.last_event:
            _enter_choice(record, msgspec.json.decode(sse.last_event[5:]))
        if keep_text:
            events = [msgspec.json.decode(payload) for payload in sse.payloads]
            record.text = "".join(event["choices"][0].get("text") or "" for event in events)
    except (msgspec.DecodeError, LookupError, TypeError, AttributeError) as error:
        _misread(record, error)
        return
    # A last chunk that only says why it ended is no token.
    if len(sse.times) == record.output_tokens + 1 and b'"text":""' in sse.last_event:
        record.chunk_times = sse.times[:-1].tobytes()


def _fill_from_body(record: RequestRecord, body: bytes, *, keep_text: bool) -> None:
    try:
        answer = msgspec.json.decode(body)
        _enter_usage(record, answer)
        _enter_choice(record, answer)
        if keep_text:
            record.text = answer["choices"][0]["text"]
    except (msgspec.DecodeError, LookupError, TypeError, AttributeError) as error:
        _misread(record, error)


def _misread(record: RequestRecord, error: Exception) -> None:
    record.error = "bad_answer"
    record.error_text = f"not a completion: {type(error).__name__}: {error}"[:_ERROR_TEXT_LENGTH]


def _enter_usage(record: RequestRecord, answer: dict[str, Any]) -> None:
    usage = answer.get("usage") or {}
    record.prompt_tokens = usage.get("prompt_tokens", UNKNOWN)
    record.output_tokens = usage.get("completion_tokens", UNKNOWN)
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    record.cached_tokens = UNKNOWN if cached is None else cached


def _enter_choice(record: RequestRecord, answer: dict[str, Any]) -> None:
    record.finish_reason = answer["choices"][0].get("finish_reason") or ""
