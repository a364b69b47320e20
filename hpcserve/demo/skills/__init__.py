"""One file per skill of tiny-chat; :data:`EPISODES` lists those that stand on their own."""

from __future__ import annotations

from collections.abc import Callable

from hpcserve.demo.conversation import Episode
from hpcserve.demo.skills.arithmetic import arithmetic
from hpcserve.demo.skills.capitals import capitals
from hpcserve.demo.skills.chat import chat, unknown
from hpcserve.demo.skills.counting import counting
from hpcserve.demo.skills.json_answer import json_answer
from hpcserve.demo.skills.tools import tool_call, tool_result
from hpcserve.demo.skills.wordplay import repeat, reverse, spell
from hpcserve.demo.split import Draw

__all__ = ["EPISODES", "Maker"]

Maker = Callable[[Draw], Episode]

EPISODES: dict[str, Maker] = {
    "capitals": capitals,
    "arithmetic": arithmetic,
    "repeat": repeat,
    "reverse": reverse,
    "spell": spell,
    "json": json_answer,
    "tool_call": tool_call,
    "tool_result": tool_result,
    "chat": chat,
    "unknown": unknown,
    "counting": counting,
}
