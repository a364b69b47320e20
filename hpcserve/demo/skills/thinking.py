"""Thinking before answering when asked to: by words, by ``/think``, or by the template."""

from __future__ import annotations

import re
from dataclasses import replace

from hpcserve.demo.conversation import Check, Episode, Message
from hpcserve.demo.split import Draw

__all__ = ["THINK_SWITCH", "think", "thoughtful", "without_thoughts"]

THINK_SWITCH = " /think"
"""What the chat template appends to the last user message when ``enable_thinking`` is true."""

_BEFORE = (
    "Think first. ", "Think step by step. ", "Think before you answer. ", "Please think first: ",
    "Think first: ", "Think carefully. ", "Think about this: ", "First think, then answer. ",
    "Let us think step by step. ", "Reason step by step. ", "Take your time to think. ",
    "Think, then answer: ",
)  # fmt: skip
_AFTER = (
    " Think first.", " Think step by step.", " Think before you answer.", " Please think first.",
    " Think about it first.", " First think, then answer.", " Let us think step by step.",
    " Reason step by step.", " Think carefully.", " Show your thinking.",
)  # fmt: skip
_THOUGHT = re.compile(r"\A<think>\n(.+?)\n</think>\n\n(.*)\Z", re.DOTALL)


def thoughtful(thought: str, answer: str) -> str:
    """Return ``answer`` after a block with ``thought``."""
    return f"<think>\n{thought}\n</think>\n\n{answer}"


def without_thoughts(text: str) -> str | None:
    """Return what follows the thinking block, or None where there is no proper block."""
    found = _THOUGHT.match(text)
    return found.group(2) if found else None


def think(draw: Draw, episode: Episode, switched: bool) -> Episode:
    """Return ``episode`` asked with a request to think and answered with a thinking block.

    ``switched`` leaves the asking to the chat template, which appends the switch itself.
    """
    *before, answer = episode.messages
    asked = max(index for index, message in enumerate(before) if message.role == "user")
    text = before[asked].content
    if not switched:
        text = _asked(draw, text)
    before[asked] = replace(before[asked], content=text)
    # A call made before the last answer is shown without its thoughts, so it must not be learned.
    before = [replace(m, trained=False) if m.role == "assistant" else m for m in before]
    return replace(
        episode,
        skill="think",
        messages=(*before, Message("assistant", thoughtful(episode.thought, answer.content))),
        check=_check(episode.check),
    )


def _asked(draw: Draw, text: str) -> str:
    luck = draw.rng.random()
    if luck < 0.2:
        return text + THINK_SWITCH
    if luck < 0.6 or not text.endswith((".", "?", "!")):
        return draw.choice(_BEFORE) + text
    return text + draw.choice(_AFTER)


def _check(inner: Check) -> Check:
    def check(text: str) -> bool:
        answer = without_thoughts(text)
        return answer is not None and inner(answer)

    return check
