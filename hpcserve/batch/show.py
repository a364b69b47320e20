"""The answers of an output file as a table."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hpcserve.batch.formats.base import MalformedRowError
from hpcserve.batch.formats.jsonl import Reader

_MAX_CELL = 600
_SPAN_ROWS = 2048


def print_answers(output: Path, questions: Path | None, *, limit: int, failed: bool) -> None:
    """Up to `limit` rows; with the run's input, each question beside its answer.

    The output has one line for each row of the input, in order, so the two are read side by side.
    """
    table = Table(box=box.SIMPLE_HEAD, show_lines=True)
    if questions is not None:
        table.add_column("question", ratio=5, overflow="fold")
    else:
        table.add_column("row", overflow="fold")
    table.add_column("answer", ratio=5, overflow="fold")
    table.add_column("tokens", justify="right")
    asked = _records(questions) if questions is not None else None
    for record in _records(output):
        row = next(asked, None) if asked is not None else None
        answer, style, num_tokens = _answer(record)
        if failed and not style:
            continue
        label = _question(row) if asked is not None else _name(record)
        table.add_row(Text(_cut(label)), Text(_cut(answer), style=style), num_tokens)
        if table.row_count == limit:
            break
    Console(file=sys.stdout).print(table)


def _records(path: Path) -> Iterator[Mapping[str, Any]]:
    """Rows in order; one that cannot be decoded is an empty record, so that none is skipped."""
    reader = Reader(path)
    try:
        spans = [scanned.span for scanned in reader.scan(_SPAN_ROWS)]
        for span in spans:
            for raw in reader.rows(span):
                try:
                    yield reader.decode(raw)
                except MalformedRowError:
                    yield {}
    finally:
        reader.close()


def _name(record: Mapping[str, Any]) -> str:
    """The row's id; where its line could not be read, the line's number."""
    error = record.get("error") or {}
    return str(record.get("custom_id") or f"line {error.get('line', '?')}")


def _answer(record: Mapping[str, Any]) -> tuple[str, str, str]:
    """Text, style and number of tokens of one line of the output."""
    if record.get("error"):
        return f"{record['error'].get('code')}: {record['error'].get('message')}", "red", ""
    body = (record.get("response") or {}).get("body") or {}
    texts = [_choice_text(choice) for choice in body.get("choices") or []]
    usage = body.get("usage") or {}
    return "\n".join(texts).strip(), "", str(usage.get("completion_tokens", ""))


def _choice_text(choice: Mapping[str, Any]) -> str:
    if "text" in choice:
        return str(choice["text"])
    message = choice.get("message") or {}
    parts = (
        [f"<think>{message['reasoning_content']}</think>"]
        if message.get("reasoning_content")
        else []
    )
    if message.get("content"):
        parts.append(message["content"])
    for call in message.get("tool_calls") or []:
        function = call.get("function") or {}
        parts.append(f"{function.get('name')}({function.get('arguments')})")
    return "\n".join(parts)


def _question(record: Mapping[str, Any] | None) -> str:
    """What was asked: the prompt, or the turns of a conversation."""
    if not record:
        return ""
    body = record.get("body") if isinstance(record.get("body"), dict) else record
    if not isinstance(body, dict):
        return ""
    messages = body.get("messages")
    if not isinstance(messages, list):
        return _as_text(body.get("prompt", ""))
    turns = [turn for turn in messages if isinstance(turn, dict)]
    if len(turns) == 1:
        return _as_text(turns[0].get("content"))
    return "\n".join(f"{turn.get('role')}: {_as_text(turn.get('content'))}" for turn in turns)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_CELL else text[: _MAX_CELL - 1] + "…"
