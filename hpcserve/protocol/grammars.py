"""The grammar that a body asks for, in OpenAI's, SGLang's and vLLM's words."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from hpcserve.errors import InvalidParameterError
from hpcserve.grammar import MAX_JSON_WHITESPACE, Grammar
from hpcserve.protocol.markers import END_THINK, END_TOOL_CALL, THINK, TOOL_CALL

_OBJECT = {"type": "object"}


class GrammarFields(BaseModel):
    """What a body may hold beside `response_format`; at most one of them is set.

    json_schema, regex, ebnf, structural_tag are SGLang's; the others are vLLM's.
    """

    json_schema: str | bool | dict[str, Any] | None = None
    regex: str | None = None
    ebnf: str | None = None
    structural_tag: str | dict[str, Any] | None = None
    guided_json: str | bool | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    structured_outputs: dict[str, Any] | None = None


def _any_object(wanted: Any) -> Grammar | None:
    return Grammar.json_object() if wanted else None


_Maker = Callable[[Any], Grammar | None]
_FIELDS: dict[str, _Maker] = {
    "json_schema": Grammar.json_schema,
    "regex": Grammar.regex,
    "ebnf": Grammar.ebnf,
    "structural_tag": lambda tag: Grammar.structural_tag(_modern(tag)),
    "guided_json": Grammar.json_schema,
    "guided_regex": Grammar.regex,
    "guided_choice": Grammar.choice,
    "guided_grammar": Grammar.ebnf,
}
#: Keys of vLLM's `structured_outputs`.
_STRUCTURED: dict[str, _Maker] = {
    "json": Grammar.json_schema,
    "regex": Grammar.regex,
    "choice": Grammar.choice,
    "grammar": Grammar.ebnf,
    "json_object": _any_object,
    "structural_tag": lambda tag: Grammar.structural_tag(_modern(tag)),
}


def asked_grammar(
    fields: GrammarFields, response_format: Mapping[str, Any] | None = None
) -> Grammar | None:
    """The one grammar of a body. Raises InvalidParameterError where there are two, or a bad one."""
    found = {name: make(value) for name, make in _FIELDS.items() if (value := _set(fields, name))}
    found |= {
        f"structured_outputs.{name}": grammar
        for name, grammar in _structured(fields.structured_outputs or {}).items()
    }
    if response_format is not None:
        found["response_format"] = _of_format(response_format)
    asked = {name: grammar for name, grammar in found.items() if grammar is not None}
    if len(asked) > 1:
        name = list(asked)[-1]
        raise InvalidParameterError(name, f"only one of {', '.join(asked)} can be set")
    return next(iter(asked.values()), None)


def grammar_field(fields: GrammarFields, response_format: Mapping[str, Any] | None = None) -> str:
    """The field of a body that its one grammar came from."""
    if response_format is not None and _of_format(response_format) is not None:
        return "response_format"
    found = [name for name in _FIELDS if _set(fields, name)]
    if fields.structured_outputs:
        found.append("structured_outputs")
    return found[0] if found else "tool_choice"


def forced_tool_call(
    tools: Sequence[Mapping[str, Any]], choice: str | Mapping[str, Any], *, parallel: bool = True
) -> Grammar:
    """Calls of these tools and nothing else, with arguments as their schemas say.

    choice: "required", or {"type": "function", "function": {"name": ...}} for one call of that one.
    """
    tags = {function["name"]: _call_of(function) for function in map(_function_of, tools)}
    if choice == "required":
        listed = {
            "type": "tags_with_separator",
            "tags": list(tags.values()),
            "separator": "\n",
            "at_least_one": True,
            "stop_after_first": not parallel,
        }
        return Grammar.structural_tag({"type": "structural_tag", "format": listed})
    given = choice.get("function") if isinstance(choice, Mapping) else None
    name = given.get("name") if isinstance(given, Mapping) else None
    if name not in tags:
        raise InvalidParameterError(
            "tool_choice",
            f"{choice!r} is not 'auto', 'none', 'required' or one of the tools: {', '.join(tags)}",
        )
    return Grammar.structural_tag({"type": "structural_tag", "format": tags[str(name)]})


def after_thinking(grammar: Grammar, *, inside: bool) -> Grammar:
    """The same, with free text in <think>...</think> before it.

    inside: the prompt ended with <think>, so the thinking is under way; else it may be left out.
    """
    thinking = {
        "type": "tag",
        "begin": "" if inside else THINK,
        "content": {"type": "any_text"},
        "end": END_THINK,
    }
    lines = {"type": "regex", "pattern": r"\n{0,2}"}
    both = {"type": "sequence", "elements": [thinking, lines]}
    first = both if inside else {"type": "optional", "content": both}
    parts = {"type": "sequence", "elements": [first, _format_of(grammar)]}
    return Grammar.structural_tag({"type": "structural_tag", "format": parts})


def _function_of(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    function = tool.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InvalidParameterError(
            "tools",
            'a tool is {"type": "function", "function": {"name": ..., "parameters": {...}}}',
        )
    return function


def _format_of(grammar: Grammar) -> Any:
    """A grammar as a part of a structural tag."""
    if grammar.kind == "structural_tag":
        return json.loads(grammar.text).get("format")
    if grammar.kind == "regex":
        return {"type": "regex", "pattern": grammar.text}
    if grammar.kind == "ebnf":
        return {"type": "grammar", "grammar": grammar.text}
    return _json_of(_OBJECT if grammar.kind == "json_object" else json.loads(grammar.text))


def _json_of(schema: Any) -> dict[str, Any]:
    return {
        "type": "json_schema",
        "json_schema": schema,
        "max_whitespace_cnt": MAX_JSON_WHITESPACE,
    }


def _call_of(function: Mapping[str, Any]) -> dict[str, Any]:
    name = json.dumps(function.get("name"), ensure_ascii=False)
    schema = function.get("parameters") or _OBJECT
    return {
        "type": "tag",
        "begin": f'{TOOL_CALL}\n{{"name": {name}, "arguments": ',
        "content": _json_of(schema),
        "end": f"}}\n{END_TOOL_CALL}",
    }


def _set(fields: GrammarFields, name: str) -> Any:
    """The field's value, None where it says nothing; {} is a schema, though one of anything."""
    value = getattr(fields, name)
    return None if value in (None, "", False, []) else value or json.dumps(value)


def _structured(given: Mapping[str, Any]) -> dict[str, Grammar | None]:
    unknown = sorted(
        name for name, value in given.items() if value is not None and name not in _STRUCTURED
    )
    if unknown:
        raise InvalidParameterError(
            "structured_outputs",
            f"{unknown[0]!r} is not supported; known: {', '.join(_STRUCTURED)}",
        )
    return {name: _STRUCTURED[name](value) for name, value in given.items() if value is not None}


def _of_format(given: Mapping[str, Any]) -> Grammar | None:
    """Of OpenAI's response_format."""
    kind = given.get("type", "text")
    if kind == "text":
        return None
    if kind == "json_object":
        return Grammar.json_object()
    if kind == "structural_tag":
        return Grammar.structural_tag(_modern(given))
    if kind == "json_schema":
        inner = given.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, Mapping) else None
        if not isinstance(schema, str | bool | dict):
            raise InvalidParameterError(
                "response_format", 'json_schema needs {"name": ..., "schema": {...}}'
            )
        return Grammar.json_schema(schema)
    raise InvalidParameterError(
        "response_format",
        f"{kind!r} is not one of text, json_object, json_schema, structural_tag",
    )


def _modern(tag: Any) -> Any:
    """A structural tag in the notation of `structures` and `triggers`, in that of `format`."""
    if isinstance(tag, str):
        try:
            tag = json.loads(tag)
        except (ValueError, RecursionError) as error:
            raise InvalidParameterError(
                "structural_tag", f"it is no valid JSON: {error}"
            ) from error
    if not isinstance(tag, Mapping) or "structures" not in tag:
        return tag
    structures = tag["structures"]
    if not isinstance(structures, list) or not all(isinstance(one, Mapping) for one in structures):
        raise InvalidParameterError(
            "structural_tag", 'structures is a list of {"begin": ..., "schema": {...}, "end": ...}'
        )
    tags = [
        {
            "begin": one.get("begin", ""),
            "content": {"type": "json_schema", "json_schema": one.get("schema") or _OBJECT},
            "end": one.get("end", ""),
        }
        for one in structures
    ]
    listed = {"type": "triggered_tags", "triggers": tag.get("triggers", []), "tags": tags}
    return {"type": "structural_tag", "format": listed}
