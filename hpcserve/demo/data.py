"""Whole conversations from the skills: the training mixture and the held-out examples.

Every draw goes through a :class:`~hpcserve.demo.split.Draw`, so nothing held out is ever trained.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

from hpcserve.demo.conversation import Check, Conversation, Episode, Message
from hpcserve.demo.phrasing import clutter, system_message
from hpcserve.demo.skills import EPISODES
from hpcserve.demo.skills.completion import completion
from hpcserve.demo.skills.recall import Acquaintance, meet, name_unknown
from hpcserve.demo.skills.thinking import think
from hpcserve.demo.skills.tools import (
    Toolbox,
    offer_tools,
    offers,
    tool_call,
    tool_missing,
    tool_result,
)
from hpcserve.demo.split import Draw

__all__ = ["EVALUATED", "LONG_CHARACTERS", "held_out", "training_stream"]

EPISODE_WEIGHTS: dict[str, float] = {
    "capitals": 3.0,
    "arithmetic": 5.0,
    "repeat": 1.5,
    "reverse": 4.0,
    "spell": 2.0,
    "json": 3.5,
    "chat": 1.2,
    "unknown": 1.2,
    "counting": 0.8,
}
"""Relative share of each skill where no tool is asked for."""
_NAMES = tuple(EPISODE_WEIGHTS)
_WEIGHTS = tuple(EPISODE_WEIGHTS.values())
_EASY = ("capitals", "arithmetic", "repeat", "spell", "json", "chat", "unknown")

LONG_CHARACTERS = (1_000, 4_800)
"""Range of the length of a long conversation, in characters (about 2.7 to a token)."""


def training_stream(seed: int) -> Iterator[Conversation]:
    """Yield training conversations without end; the same ``seed`` gives the same conversations."""
    draw = Draw(random.Random(seed), "train")
    while True:
        yield _conversation(draw)


def held_out(skill: str, count: int, seed: int) -> list[Conversation]:
    """Return ``count`` held-out conversations whose last answer shows ``skill``."""
    draw = Draw(random.Random(f"{seed} {skill}"), "held_out")
    return [EVALUATED[skill](draw) for _ in range(count)]


def _conversation(draw: Draw) -> Conversation:
    luck = draw.rng.random()
    if luck < 0.07:
        return completion(draw)
    if luck < 0.25:
        return _recall(draw, fillers=draw.choice((0, 1, 1, 2, 2, 3, 4)))
    if luck < 0.32:
        return _long(draw)
    if luck < 0.48:
        return _with_tools(draw, turns=draw.choice((1, 1, 1, 2, 3, 4)))
    return _plain(draw, turns=draw.choice((1, 1, 1, 1, 2, 3, 4, 5)))


def _episode(
    draw: Draw, tools: Toolbox = (), names: tuple[str, ...] = (), alone: bool = True
) -> Episode:
    """Draw an episode that needs no tool and, unless ``alone``, no system message of its own."""
    while True:
        name = draw.choice(names) if names else draw.rng.choices(_NAMES, _WEIGHTS)[0]
        if name == "arithmetic" and offers(tools, "calculator"):
            continue
        if name == "unknown" and offers(tools, "translate"):
            continue
        episode = EPISODES[name](draw)
        if alone or episode.system is None:
            return episode


def _plain(draw: Draw, turns: int) -> Conversation:
    episodes = [_episode(draw, alone=turns == 1) for _ in range(turns)]
    if draw.chance(0.05):
        episodes[0] = _cluttered(draw, episodes[0])
    if draw.chance(0.04):
        episodes[-1] = draw.choice((name_unknown, tool_missing))(draw)
    return _assemble(draw, episodes)


def _cluttered(draw: Draw, episode: Episode) -> Episode:
    """Put text that has nothing to do with the question before it."""
    asked, *rest = episode.messages
    text = f"{clutter(draw)}{draw.choice((chr(10), chr(10) * 2, ' '))}{asked.content}"
    return replace(episode, messages=(replace(asked, content=text), *rest))


def _with_tools(draw: Draw, turns: int) -> Conversation:
    tools = offer_tools(draw)
    episodes: list[Episode] = []
    for _ in range(turns):
        luck = draw.rng.random()
        if luck < 0.45:
            episodes.append(tool_call(draw, tools))
        elif luck < 0.75:
            episodes.append(tool_result(draw, tools))
        elif luck < 0.80:
            episodes.append(tool_missing(draw, tools))
        else:
            episodes.append(_episode(draw, tools, alone=False))
    for index, episode in enumerate(episodes[:-1]):
        if episode.skill == "tool_call":  # the next turn may come only once the tool has answered
            episodes[index] = tool_result(draw, tools)
    return _assemble(draw, episodes, tools)


def _recall(draw: Draw, fillers: int) -> Conversation:
    episodes = [_episode(draw, alone=False) for _ in range(fillers)]
    return _with_name(draw, meet(draw), episodes)


def _long(draw: Draw) -> Conversation:
    budget = draw.rng.randint(*LONG_CHARACTERS)
    tools = offer_tools(draw) if draw.chance(0.25) else ()
    episodes: list[Episode] = []
    while budget > 0:
        use_tool = bool(tools) and draw.chance(0.3)
        episode = tool_result(draw, tools) if use_tool else _episode(draw, tools, alone=False)
        budget -= sum(len(message.content) + 50 for message in episode.messages)
        episodes.append(episode)
    if draw.chance(0.7):
        return _with_name(draw, meet(draw), episodes, tools)
    return _assemble(draw, episodes, tools)


def _with_name(
    draw: Draw, known: Acquaintance, episodes: list[Episode], tools: Toolbox = ()
) -> Conversation:
    first = Episode("chat", known.told, lambda text: known.name in text, "I greet the user.")
    last = Episode("name_recall", known.asked, known.check, known.thought)
    by_system = draw.chance(0.08)
    if by_system:
        last = replace(last, system=known.system)
    return _assemble(draw, [*([] if by_system else [first]), *episodes, last], tools)


def _assemble(draw: Draw, episodes: list[Episode], tools: Toolbox = ()) -> Conversation:
    """Join episodes into a conversation, at times with thinking, at times with a system message."""
    thinking: bool | None = None
    luck = draw.rng.random()
    if luck < 0.10:
        switched = draw.chance(0.4)
        thinking = True if switched else None
        episodes[-1] = think(draw, episodes[-1], switched)
    elif luck < 0.14:
        thinking = False
    messages: list[Message] = []
    for episode in episodes[:-1]:
        # A template drops old thoughts, so a request to think is then followed by a bare answer.
        dropped = draw.chance(0.03) and episode.skill != "tool_result"
        turns = think(draw, episode, switched=False).messages if dropped else episode.messages
        messages += [*turns[:-1], replace(episode.messages[-1], trained=not dropped)]
    return _finish(draw, episodes[-1], messages, tools, thinking)


def _finish(
    draw: Draw, last: Episode, before: list[Message], tools: Toolbox, thinking: bool | None
) -> Conversation:
    system = last.system or (system_message(draw) if draw.chance(0.4) else None)
    head = [Message("system", system)] if system else []
    schemas = tuple(offered.schema for offered in tools) or last.tools
    return Conversation(last.skill, (*head, *before, *last.messages), last.check, schemas, thinking)


def _alone_or_after(make: Callable[[Draw], Episode]) -> Callable[[Draw], Conversation]:
    def sample(draw: Draw) -> Conversation:
        episode = make(draw)
        fillers = 0 if episode.tools or episode.system else draw.choice((0, 0, 1, 2))
        before = [_episode(draw, names=_EASY, alone=False) for _ in range(fillers)]
        history = [message for filler in before for message in filler.messages]
        return _finish(draw, episode, history, (), None)

    return sample


def _held_out_recall(draw: Draw) -> Conversation:
    return _named_history(
        draw, [_episode(draw, alone=False) for _ in range(draw.choice((1, 1, 2, 3)))]
    )


def _held_out_long(draw: Draw) -> Conversation:
    episodes: list[Episode] = []
    budget = draw.rng.randint(LONG_CHARACTERS[1] // 2, LONG_CHARACTERS[1])
    while budget > 0:
        episodes.append(_episode(draw, alone=False))
        budget -= sum(len(message.content) + 50 for message in episodes[-1].messages)
    return replace(_named_history(draw, episodes), skill="long")


def _named_history(draw: Draw, episodes: list[Episode]) -> Conversation:
    known = meet(draw)
    history = [*known.told, *(message for episode in episodes for message in episode.messages)]
    last = Episode("name_recall", known.asked, known.check, known.thought)
    return _finish(draw, last, history, (), None)


def _held_out_no_tool(draw: Draw) -> Conversation:
    tools = offer_tools(draw)
    made = (
        tool_missing(draw, tools)
        if draw.chance(0.15)
        else _episode(draw, tools, _EASY, alone=False)
    )
    return replace(_finish(draw, made, [], tools, None), skill="no_tool")


def _held_out_think(draw: Draw) -> Conversation:
    switched = draw.chance(0.4)
    episode = think(draw, _episode(draw, names=_EASY, alone=False), switched)
    return _finish(draw, episode, [], (), True if switched else None)


def _held_out_no_think(draw: Draw) -> Conversation:
    episode = _episode(draw, names=_EASY, alone=False)
    checked: Check = lambda text: "<think>" not in text and episode.check(text)  # noqa: E731
    made = _finish(draw, episode, [], (), False)
    return replace(made, skill="no_think", check=checked)


EVALUATED: dict[str, Callable[[Draw], Conversation]] = {
    "capitals": _alone_or_after(EPISODES["capitals"]),
    "arithmetic": _alone_or_after(EPISODES["arithmetic"]),
    "repeat": _alone_or_after(EPISODES["repeat"]),
    "reverse": _alone_or_after(EPISODES["reverse"]),
    "spell": _alone_or_after(EPISODES["spell"]),
    "name_recall": _held_out_recall,
    "json": _alone_or_after(EPISODES["json"]),
    "tool_call": _alone_or_after(EPISODES["tool_call"]),
    "tool_result": _alone_or_after(EPISODES["tool_result"]),
    "no_tool": _held_out_no_tool,
    "think": _held_out_think,
    "no_think": _held_out_no_think,
    "chat": _alone_or_after(EPISODES["chat"]),
    "unknown": _alone_or_after(EPISODES["unknown"]),
    "counting": _alone_or_after(EPISODES["counting"]),
    "long": _held_out_long,
    "completion": completion,
}
"""For each evaluated skill, what draws a conversation that ends in it."""
