"""Calling a tool, telling its result, and leaving tools alone when none is needed."""

from __future__ import annotations

import json
from dataclasses import dataclass

from hpcserve.demo.conversation import Episode, Message, Tool
from hpcserve.demo.phrasing import dress, fill
from hpcserve.demo.skills.chat import DO_NOT_KNOW
from hpcserve.demo.skills.tool_kinds import TOOL_KINDS, Parameter, ToolKind, Values
from hpcserve.demo.split import Draw

__all__ = [
    "OfferedTool",
    "Toolbox",
    "call_text",
    "offer_tools",
    "offers",
    "parse_calls",
    "tool_call",
    "tool_missing",
    "tool_result",
]

_CALL_START, _CALL_END = "<tool_call>\n", "\n</tool_call>"
_UNITS = ("celsius", "fahrenheit")


@dataclass(frozen=True)
class OfferedTool:
    """A tool kind under the names it has in one conversation; ``arguments`` maps roles to names."""

    kind: ToolKind
    name: str
    arguments: dict[str, str]
    has_unit: bool
    schema: Tool


Toolbox = tuple[OfferedTool, ...]


def offer_tools(draw: Draw) -> Toolbox:
    """Draw one to four tools of different kinds for one conversation."""
    kinds = draw.rng.sample(TOOL_KINDS, draw.choice((1, 1, 1, 2, 2, 3, 4)))
    return tuple(_offer(draw, kind) for kind in kinds)


def tool_call(draw: Draw, tools: Toolbox | None = None) -> Episode:
    """Ask for one of ``tools``; the answer is the call (at times two calls)."""
    box = tools or offer_tools(draw)
    offered = draw.choice(box)
    question, calls, _ = _ask(draw, offered)
    answer = "\n".join(call_text(offered.name, arguments) for arguments in calls)
    expected = [{"name": offered.name, "arguments": arguments} for arguments in calls]
    return Episode(
        skill="tool_call",
        messages=(Message("user", question), Message("assistant", answer)),
        check=lambda text: parse_calls(text) == expected,
        thought=f"The tool {offered.name} can answer this, so I call it.",
        tools=_schemas(box),
    )


def tool_result(draw: Draw, tools: Toolbox | None = None) -> Episode:
    """Ask, call, and get the tool's reply; the answer tells it in a sentence."""
    box = tools or offer_tools(draw)
    offered = draw.choice(box)
    question, calls, values = _ask(draw, offered, single=True)
    content, answer = offered.kind.result(draw, values)
    return Episode(
        skill="tool_result",
        messages=(
            Message("user", question),
            Message("assistant", call_text(offered.name, calls[0])),
            Message("tool", content),
            Message("assistant", answer),
        ),
        check=lambda given: given.strip() == answer,
        thought="The tool has answered. I tell the user.",
        tools=_schemas(box),
    )


def tool_missing(draw: Draw, tools: Toolbox = ()) -> Episode:
    """Ask for a kind of tool that is not among ``tools``; the answer is that it cannot be known."""
    given = {offered.kind.kind for offered in tools} | {"calculator", "search"}
    offered = _offer(draw, draw.choice([kind for kind in TOOL_KINDS if kind.kind not in given]))
    question, _, _ = _ask(draw, offered, single=True)
    return Episode(
        skill="unknown",
        messages=(Message("user", question), Message("assistant", DO_NOT_KNOW)),
        check=lambda text: text.strip() == DO_NOT_KNOW,
        thought="I have no tool for this, so I say that.",
        tools=_schemas(tools),
    )


def offers(tools: Toolbox, kind: str) -> bool:
    """Say whether a tool of ``kind`` is among ``tools``."""
    return any(offered.kind.kind == kind for offered in tools)


def call_text(name: str, arguments: Values) -> str:
    """Return a Hermes-style call."""
    return f"{_CALL_START}{json.dumps({'name': name, 'arguments': arguments})}{_CALL_END}"


def parse_calls(text: str) -> list[object] | None:
    """Read back an answer made of calls only; None when it is anything else."""
    calls: list[object] = []
    for block in text.strip().split(_CALL_START)[1:]:
        body, end, rest = block.partition(_CALL_END)
        if not end or rest.strip():
            return None
        try:
            calls.append(json.loads(body))
        except json.JSONDecodeError:
            return None
    return calls if text.strip().startswith(_CALL_START) else None


def _ask(
    draw: Draw, offered: OfferedTool, single: bool = False
) -> tuple[str, list[Values], Values]:
    phrasing = draw.choice(offered.kind.asks)
    values = offered.kind.values(draw)
    all_values = [values]
    text = dress(draw, phrasing) if not phrasing.endswith("{text}") else phrasing
    shown = dict(values)
    if offered.kind.kind in ("weather", "time") and not single and draw.chance(0.15):
        other = offered.kind.values(draw)
        if other["city"] != values["city"]:
            all_values.append(other)
            shown["city"] = f"{values['city']} and {other['city']}"
    unit: dict[str, str | int] = {}
    if offered.has_unit and draw.chance(0.4):
        choice = draw.choice(_UNITS)
        unit = {"unit": choice}
        text = (
            text.rstrip("?.")
            + f" in {draw.choice((choice, choice.capitalize()))}"
            + draw.choice(("?", ".", ""))
        )
    calls = [
        {name: entry[role] for role, name in offered.arguments.items()} | unit
        for entry in all_values
    ]
    return fill(text, **shown), calls, values


def _offer(draw: Draw, kind: ToolKind) -> OfferedTool:
    def make() -> tuple[str, dict[str, str]]:
        name = draw.choice(kind.names)
        luck = draw.rng.random()
        if luck < 0.06:
            name = f"{name}_v{draw.rng.randint(2, 9)}"
        elif luck < 0.12:
            name = f"{draw.choice(('my', 'the', 'api', 'tool', 'do', 'simple'))}_{name}"
        elif luck < 0.16:
            name = f"{name}_{draw.choice(('tool', 'api', 'now', 'service'))}"
        return name, {parameter.role: draw.choice(parameter.names) for parameter in kind.parameters}

    name, arguments = draw.fresh(make, lambda made: f"tool {made[0]} {' '.join(made[1].values())}")
    has_unit = kind.kind == "weather" and draw.chance(0.3)
    return OfferedTool(
        kind, name, arguments, has_unit, _schema(draw, kind, name, arguments, has_unit)
    )


def _schema(
    draw: Draw, kind: ToolKind, name: str, arguments: dict[str, str], has_unit: bool
) -> Tool:
    properties = {
        arguments[parameter.role]: _property(draw, parameter) for parameter in kind.parameters
    }
    if has_unit:
        properties["unit"] = {"type": "string", "enum": list(_UNITS)}
    parameters: dict[str, object] = {"type": "object", "properties": properties}
    if draw.chance(0.85):
        parameters["required"] = list(arguments.values())
    if draw.chance(0.05):
        parameters["additionalProperties"] = False
    function: dict[str, object] = {"name": name}
    if draw.chance(0.9):
        function["description"] = draw.choice(kind.descriptions)
    function["parameters"] = parameters
    return {"type": "function", "function": function}


def _property(draw: Draw, parameter: Parameter) -> dict[str, object]:
    described: dict[str, object] = {"type": parameter.kind}
    if draw.chance(0.5):
        described["description"] = draw.choice(parameter.descriptions)
    return described


def _schemas(tools: Toolbox) -> tuple[Tool, ...]:
    return tuple(offered.schema for offered in tools)
