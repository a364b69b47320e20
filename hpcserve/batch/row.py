"""What one row of the input asks for: an OpenAI batch line, or a plain prompt or conversation."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hpcserve.errors import HpcserveError, RequestError

CHAT_URL = "/v1/chat/completions"
COMPLETION_URL = "/v1/completions"
URLS = (CHAT_URL, COMPLETION_URL)
EMBEDDING_URL = "/v1/embeddings"
NO_EMBEDDINGS = "this engine generates text; embeddings need a server of an embedding model"

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

    index: its number among all rows of the run, from 0; file and line: as a user counts.
    shard, number: where it is kept.  request: what the engine takes, once prepared.
    unused: columns that mean nothing here.  columns: what the output repeats of the input.
    tries: how often the engine was given it and gave nothing back.
    """

    index: int
    file: int
    line: int
    num_bytes: int
    shard: Any
    number: int
    custom_id: str | int | None = None
    columns: Mapping[str, Any] | None = None
    model: Any = None
    tries: int = 0
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
    template: a jinja text that makes the prompt of a row from its columns.
    """

    fields: Mapping[str, frozenset[str]]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    apply_chat_template: bool = False
    several_files: bool = False
    prompt_column: str | None = None
    messages_column: str | None = None
    id_column: str | None = None
    template: str | None = None
    system_prompt: str | None = None
    keep_columns: bool = False

    def fill(self, row: BatchRow, record: Mapping[str, Any]) -> None:
        """Read `record` into `row`; what is wrong with it becomes its failure."""
        if self.keep_columns:
            row.columns = record
        try:
            row.custom_id = self._custom_id(record, row)
            if (
                "body" in record or "url" in record or "method" in record
            ) and not self._maps_columns:
                row.url, body = _openai_line(record)
            else:
                row.url, body, row.unused = self._plain(record)
        except _BadRowError as bad:
            row.failure = Failure(bad.code, bad.message)
            return
        row.body = self._with_defaults(body, row.index)
        row.model = body.get("model")

    @property
    def _maps_columns(self) -> bool:
        return bool(self.prompt_column or self.messages_column or self.template is not None)

    def _custom_id(self, record: Mapping[str, Any], row: BatchRow) -> str | int:
        names = _ID_KEYS if self.id_column is None else (self.id_column,)
        given = next((record[key] for key in names if record.get(key) is not None), None)
        if given is None:
            return row_name(row.line, row.file if self.several_files else None)
        if isinstance(given, bool) or not isinstance(given, str | int):
            raise _BadRowError(
                "invalid_custom_id", f"custom_id is {given!r}; expected text or a whole number"
            )
        return given

    def _plain(self, record: Mapping[str, Any]) -> tuple[str, dict[str, Any], tuple[str, ...]]:
        asked = self._asked(record)
        url = CHAT_URL if "messages" in asked else COMPLETION_URL
        known = self.fields[url] - _ASKING
        taken = {self.prompt_column, self.messages_column, *_ASKING, *_ID_KEYS, self.id_column}
        body = {
            key: value
            for key, value in record.items()
            if key in known and key not in taken and value is not None
        }
        body |= asked
        # A template sees every column; what else a row has is no mistake then.
        ignored = tuple(key for key in record if key not in known and key not in taken)
        return url, body, () if self.template is not None else ignored

    def _asked(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The row's `prompt` or `messages`."""
        if self.template is not None:
            prompt: Any = rendered(self.template, record)
        elif self.messages_column or ("messages" in record and not self.prompt_column):
            if "prompt" in record and not self.messages_column:
                raise _BadRowError("ambiguous_row", 'the row has both "prompt" and "messages"')
            messages = _column(record, self.messages_column or "messages")
            return {"messages": self._with_system(_plain_messages(messages))}
        elif self.prompt_column or "prompt" in record:
            prompt = _column(record, self.prompt_column or "prompt")
        else:
            raise _BadRowError(
                "unknown_row",
                'the row has neither "body" (OpenAI batch line) nor "prompt" nor "messages"',
            )
        if self.apply_chat_template or self.system_prompt is not None:
            return {"messages": self._with_system([{"role": "user", "content": prompt}])}
        return {"prompt": prompt}

    def _with_system(self, messages: Any) -> Any:
        """The conversation behind the run's system prompt, unless it brings its own."""
        if self.system_prompt is None or not isinstance(messages, list):
            return messages
        if messages and isinstance(messages[0], dict) and messages[0].get("role") == "system":
            return messages
        return [{"role": "system", "content": self.system_prompt}, *messages]

    def _with_defaults(self, body: dict[str, Any], index: int) -> dict[str, Any]:
        full = {**self.defaults, **body}
        if "max_completion_tokens" in body:
            full.pop("max_tokens", None)
        for key in _STREAM_KEYS:
            full.pop(key, None)
        if full.get("seed") is None:
            full["seed"] = row_seed(self.seed, index)
        return full


def rendered(template: str, record: Mapping[str, Any]) -> str:
    """A row's prompt. Raises _BadRowError where the template asks for what the row lacks."""
    import jinja2

    try:
        return str(_compiled(template).render(record))
    except (jinja2.TemplateError, *_TEMPLATE_ERRORS) as error:
        why = str(error) or type(error).__name__
        raise _BadRowError("template_error", f"the template cannot be filled: {why}") from None


@functools.lru_cache(maxsize=4)
def _compiled(template: str) -> Any:
    import jinja2
    from jinja2.sandbox import SandboxedEnvironment

    environment = SandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    return environment.from_string(template)


def _column(record: Mapping[str, Any], name: str) -> Any:
    value = record.get(name)
    if value is None:
        raise _BadRowError("missing_column", f"the row has nothing in the column {name!r}")
    return value


def _plain_messages(messages: Any) -> Any:
    """A table fills the fields that a message lacks with nulls: they were never said."""
    if not isinstance(messages, list):
        return messages
    return [
        {key: value for key, value in one.items() if value is not None}
        if isinstance(one, dict)
        else one
        for one in messages
    ]


def row_name(line: int, file: int | None) -> str:
    """What a row without an id of its own is called. file: its number, where there are several."""
    return f"row-{line}" if file is None else f"file-{file + 1}-row-{line}"


def row_seed(seed: int, index: int) -> int:
    """A seed of 63 bits for row `index` of a run with `seed`."""
    digest = hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


_ID_KEYS = ("custom_id", "id")
#: What an expression of a template may raise for a row's values: a division by zero, for one.
_TEMPLATE_ERRORS = (
    *(ArithmeticError, AttributeError, LookupError, MemoryError),
    *(RecursionError, TypeError, ValueError),
)
_ASKING = frozenset({"prompt", "messages"})


class _BadRowError(Exception):
    """Never leaves this module."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


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
    if url == EMBEDDING_URL:
        raise _BadRowError("unsupported_url", f"{url}: {NO_EMBEDDINGS}")
    if url not in URLS:
        raise _BadRowError("invalid_url", f"url is {url!r}; known: {', '.join(URLS)}")
    return url, body
