"""What the generator makes: messages, episodes of one skill, and whole conversations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Check", "Conversation", "Episode", "Message", "Role", "Tool"]

Role = Literal["system", "user", "assistant", "tool"]
Check = Callable[[str], bool]
"""Says whether an answer (without end marker) is right."""
Tool = dict[str, Any]
"""A tool in the OpenAI form: ``{"type": "function", "function": {"name", "parameters", ...}}``."""


@dataclass(frozen=True)
class Message:
    """One message; an assistant's ``content`` is the whole text, with thinking and tool calls."""

    role: Role
    content: str
    trained: bool = True


@dataclass(frozen=True)
class Episode:
    """A few messages that show one skill, the last one the assistant's reference answer."""

    skill: str
    messages: tuple[Message, ...]
    check: Check
    thought: str
    tools: tuple[Tool, ...] = ()
    system: str | None = None

    @property
    def answer(self) -> str:
        """The reference answer."""
        return self.messages[-1].content


@dataclass(frozen=True)
class Conversation:
    """One training or held-out example.

    ``thinking`` is the chat template's ``enable_thinking`` (None: not given). A ``raw``
    conversation is plain text for completion, with no chat markers: its first message is the
    prompt, its second the continuation.
    """

    skill: str
    messages: tuple[Message, ...]
    check: Check
    tools: tuple[Tool, ...] = ()
    thinking: bool | None = None
    raw: bool = False

    @property
    def answer(self) -> str:
        """The reference answer."""
        return self.messages[-1].content
