"""What one row of the input asks for: an OpenAI batch line, or a plain prompt or conversation."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hpcserve.errors import HpcserveError, RequestError

CHAT_URL = "/v1/chat/completions"
COMPLETION_URL = "/v1/completions"
URLS = (CHAT_URL, COMPLETION_URL)

_ENVELOPE = ("body", "url", "method")
# A batch has nobody to stream to: the whole answer is the same text.
_STREAM_KEYS = ("stream", "stream_options")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a row has no answer.

    status: the HTTP status that a server would have given; None where the row never was a request.
    """

    code: str
    message: str
    status: int | None = None
    error_type: str = "invalid_request_error"
    param: str | None = None

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """What an error that one row raised says to its user."""
        if not isinstance(error, HpcserveError):
            return cls("invalid_request", f"{type(error).__name__}: {error}", 400)
        param = error.param if isinstance(error, RequestError) else None
        code = error.code or "invalid_request"
        return cls(code, str(error), error.http_status, error.error_type, param)


@dataclass(slots=True)
class BatchRow:
    """One row, from the reader to the output.

    index: its number among the rows, from 0, which is its identity.  line: as a user counts.
    request: what the engine takes, once prepared.  unused: columns that mean nothing here.
    """

    index: int
    line: int
    num_bytes: int
    custom_id: str | int | None = None
    url: str = ""
    body: dict[str, Any] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    failure: Failure | None = None
    request: Any = None


@dataclass(frozen=True)
class RowDialect:
    """How rows of this run are read.

    fields: for each url, the names that its body may have.
    defaults: body fields for rows that do not give them.
    seed: rows that bring no seed get one of their own, drawn from this and their index: the same
    file gives the same answers, on whatever machine and whichever rows ran before.
    """

    fields: Mapping[str, frozenset[str]]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    apply_chat_template: bool = False

    def fill(self, row: BatchRow, record: Mapping[str, Any]) -> None:
        """Read `record` into `row`; what is wrong with it becomes its failure."""
        try:
            row.custom_id = _custom_id(record, row.line)
            if any(key in record for key in _ENVELOPE):
                row.url, body = _openai_line(record)
            else:
                row.url, body, row.unused = self._plain(record)
        except _BadRowError as bad:
            row.failure = Failure(bad.code, bad.message)
            return
        row.body = self._with_defaults(body, row.index)

    def _plain(self, record: Mapping[str, Any]) -> tuple[str, dict[str, Any], tuple[str, ...]]:
        if "messages" in record and "prompt" in record:
            raise _BadRowError("ambiguous_row", 'the row has both "prompt" and "messages"')
        if "messages" in record:
            url = CHAT_URL
        elif "prompt" in record:
            url = CHAT_URL if self.apply_chat_template else COMPLETION_URL
        else:
            raise _BadRowError(
                "unknown_row",
                'the row has neither "body" (OpenAI batch line) nor "prompt" nor "messages"',
            )
        known = self.fields[url] | {"prompt"}
        body = {key: value for key, value in record.items() if key in known}
        if url == CHAT_URL and "prompt" in body:
            body["messages"] = [{"role": "user", "content": body.pop("prompt")}]
        ignored = tuple(key for key in record if key not in known and key not in _ID_KEYS)
        return url, body, ignored

    def _with_defaults(self, body: dict[str, Any], index: int) -> dict[str, Any]:
        full = {**self.defaults, **body}
        if "max_completion_tokens" in body:
            full.pop("max_tokens", None)
        for key in _STREAM_KEYS:
            full.pop(key, None)
        if full.get("seed") is None:
            full["seed"] = row_seed(self.seed, index)
        return full


def row_seed(seed: int, index: int) -> int:
    """A seed of 63 bits for row `index` of a run with `seed`."""
    digest = hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


_ID_KEYS = ("custom_id", "id")


class _BadRowError(Exception):
    """Never leaves this module."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def _custom_id(record: Mapping[str, Any], line: int) -> str | int:
    given = next((record[key] for key in _ID_KEYS if record.get(key) is not None), None)
    if given is None:
        return f"row-{line}"
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise _BadRowError(
            "invalid_custom_id", f"custom_id is {given!r}; expected text or a whole number"
        )
    return given


def _openai_line(record: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    method = record.get("method", "POST")
    if method != "POST":
        raise _BadRowError("invalid_method", f"method is {method!r}; only POST is known")
    body = record.get("body")
    if body is None:
        raise _BadRowError("missing_body", 'the line has no "body"')
    if not isinstance(body, dict):
        raise _BadRowError("invalid_body", f'"body" is no object, but {type(body).__name__}')
    url = record.get("url", CHAT_URL if "messages" in body else COMPLETION_URL)
    if url not in URLS:
        raise _BadRowError("invalid_url", f"url is {url!r}; known: {', '.join(URLS)}")
    return url, body
