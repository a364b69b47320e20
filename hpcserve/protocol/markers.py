"""Splits text that arrives in pieces at markers such as <think> and <tool_call>."""

from __future__ import annotations

import json
import uuid

from hpcserve.protocol.responses import FunctionCall, ToolCall

THINK, END_THINK = "<think>", "</think>"
TOOL_CALL, END_TOOL_CALL = "<tool_call>", "</tool_call>"


def length_of_partial(text: str, marker: str) -> int:
    """Length of the longest end of `text` that may be the start of `marker`."""
    for length in range(min(len(marker) - 1, len(text)), 0, -1):
        if marker.startswith(text[-length:]):
            return length
    return 0


class ReasoningSplitter:
    """Tells a model's thinking from its answer.

    inside: the prompt ended with <think>, so the text begins with the thinking.
    """

    def __init__(self, *, inside: bool = False) -> None:
        self._inside = inside
        self._started = inside
        self._trims = inside
        self._held = ""

    def add(self, piece: str) -> tuple[str, str]:
        """(thinking, answer) that this piece made certain."""
        text = self._held + piece
        self._held = ""
        if not self._started:
            text = text.lstrip()
            if THINK.startswith(text):
                self._held = text
                return "", ""
            self._started = True
            if not text.startswith(THINK):
                return "", text
            self._inside = self._trims = True
            text = text.removeprefix(THINK)
        if self._trims:
            text = text.lstrip("\n")
            self._trims = not text
        return self._thinking(text) if self._inside else ("", text)

    def flush(self) -> tuple[str, str]:
        """What was held back, at the end."""
        held, self._held = self._held, ""
        return (held, "") if self._inside else ("", held)

    def _thinking(self, text: str) -> tuple[str, str]:
        thinking, marker, answer = text.partition(END_THINK)
        if marker:
            self._inside, self._trims = False, True
            answer = answer.lstrip("\n")
            self._trims = not answer
            return thinking.rstrip("\n"), answer
        # A line's end before </think> belongs to the marker.
        kept = len(text) - length_of_partial(text, END_THINK)
        kept = len(text[:kept].rstrip("\n"))
        self._held = text[kept:]
        return text[:kept], ""


class ToolCallSplitter:
    """Takes Hermes-style <tool_call>{"name": ..., "arguments": {...}}</tool_call> out of a text.

    A block that is no valid call stays in the text.
    """

    def __init__(self) -> None:
        self._held = ""
        self.num_calls = 0

    def add(self, piece: str) -> tuple[str, list[ToolCall]]:
        """(text, calls) that this piece made certain."""
        text = self._held + piece
        out, calls = [], []
        while True:
            before, marker, rest = text.partition(TOOL_CALL)
            block, end, after = rest.partition(END_TOOL_CALL)
            if not end:
                break
            call = parse_tool_call(block)
            if call is None:
                out.append(before + marker + block + end)
            else:
                out.append(before)
                calls.append(call)
            text = after
        held = len(marker + rest) or length_of_partial(before, TOOL_CALL)
        self._held = text[len(text) - held :]
        out.append(text[: len(text) - held])
        self.num_calls += len(calls)
        found = "".join(out)
        # Only white space stands between and after calls.
        return ("" if self.num_calls and not found.strip() else found), calls

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held


def parse_tool_call(block: str) -> ToolCall | None:
    """The call in the text between the markers; None where it is none."""
    try:
        call = json.loads(block, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments", call.get("parameters", {}))
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    if not isinstance(arguments, str) and not _is_text(text):
        text = json.dumps(arguments)  # with half a surrogate pair, which only an escape can spell
    if not _is_text(call["name"]) or not _is_text(text):
        return None
    return ToolCall(f"call_{uuid.uuid4().hex[:24]}", FunctionCall(call["name"], text))


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _is_text(text: str) -> bool:
    """Whether UTF-8 can carry it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
