"""Conversation → text with loss marks, written out in Python because it is fast.

It gives the same text as ``chat_template.jinja``; a test compares the two.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from hpcserve.demo.conversation import Conversation, Message, Tool
from hpcserve.demo.skills.thinking import THINK_SWITCH

__all__ = [
    "END_OF_TEXT",
    "END_OF_TURN",
    "START_OF_TURN",
    "Segment",
    "chat_template",
    "prompt",
    "render",
]

START_OF_TURN = "<|im_start|>"
END_OF_TURN = "<|im_end|>"
END_OF_TEXT = "<|endoftext|>"
_NO_THOUGHT = "<think>\n\n</think>\n\n"


class Segment(NamedTuple):
    """A piece of a rendered conversation, and whether its tokens count in the loss."""

    text: str
    trained: bool


def chat_template() -> str:
    """Return the Jinja source of the chat template."""
    return (Path(__file__).resolve().parent / "chat_template.jinja").read_text(encoding="utf-8")


def prompt(conversation: Conversation) -> str:
    """Return the text that the model sees before it gives the last answer."""
    return "".join(segment.text for segment in render(conversation)[:-1])


def render(conversation: Conversation, sort_keys: bool = False) -> list[Segment]:
    """Return the segments of a conversation; the last one is the last answer with its end marker.

    ``sort_keys`` writes tool signatures with sorted keys, as some renderers of the template do.
    """
    messages = conversation.messages
    if conversation.raw:
        return [
            Segment(messages[0].content, False),
            Segment(messages[1].content + END_OF_TEXT, True),
        ]
    segments: list[Segment] = []
    system = _system(messages, conversation.tools, sort_keys)
    asked = max(index for index, message in enumerate(messages) if message.role == "user")
    text = system
    for index, message in enumerate(messages):
        if message.role == "user":
            switch = THINK_SWITCH if index == asked and conversation.thinking is True else ""
            text += f"{START_OF_TURN}user\n{message.content}{switch}{END_OF_TURN}\n"
        elif message.role == "tool":
            response = f"<tool_response>\n{message.content}\n</tool_response>"
            text += f"{START_OF_TURN}user\n{response}{END_OF_TURN}\n"
        elif message.role == "assistant":
            is_last = index == len(messages) - 1
            before = _NO_THOUGHT if is_last and conversation.thinking is False else ""
            segments.append(Segment(f"{text}{START_OF_TURN}assistant\n{before}", False))
            segments.append(Segment(message.content + END_OF_TURN, message.trained))
            text = "\n"
    return segments


def _system(messages: tuple[Message, ...], tools: tuple[Tool, ...], sort_keys: bool) -> str:
    parts = [messages[0].content] if messages[0].role == "system" else []
    if tools:
        signatures = "\n".join(
            json.dumps(tool, sort_keys=sort_keys, ensure_ascii=False) for tool in tools
        )
        parts.append(
            f"# Tools\n\nYou may call these functions:\n<tools>\n{signatures}\n</tools>\n\n"
            "To call one, answer with:\n"
            '<tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>'
        )
    body = "\n\n".join(parts)
    return f"{START_OF_TURN}system\n{body}{END_OF_TURN}\n" if parts else ""
