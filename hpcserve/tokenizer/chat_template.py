"""Conversations to the text that a model was trained on, by the checkpoint's jinja template.

The environment (filters, functions, whitespace rules) is the one that Hugging Face templates
are written for, so the text equals that of transformers' apply_chat_template. Templates come
with a download, so they run in jinja's sandbox.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node, Scope
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hpcserve.errors import InputError, InvalidParameterError, TokenizerError
from hpcserve.tokenizer.files import MORE_TEMPLATES, TEMPLATE_FILE

_DEFAULT = "default"
_FOR_TOOLS = "tool_use"
#: What a template may raise over messages it was not written for.
_REFUSALS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RecursionError,
)


def find_templates(
    folder: Path, config: Mapping[str, Any], *, replacement: Path | None = None
) -> dict[str, str]:
    """Name -> template of a model folder; {} where it has none.

    The replacement comes first, then chat_template.jinja with more of them in a folder beside it,
    then tokenizer_config.json, whose entry is a template or a list of named ones.
    """
    if replacement is not None:
        return {_DEFAULT: _read(replacement)}
    if (folder / TEMPLATE_FILE).is_file():
        named = {path.stem: _read(path) for path in (folder / MORE_TEMPLATES).glob("*.jinja")}
        return {**named, _DEFAULT: _read(folder / TEMPLATE_FILE)}
    declared = config.get("chat_template")
    if isinstance(declared, str):
        return {_DEFAULT: declared}
    if isinstance(declared, list):
        return {entry["name"]: entry["template"] for entry in declared}
    return {}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the chat template {path}: {error}") from error


class ChatTemplate:
    """Renders conversations; compiled once, usable from several threads."""

    def __init__(self, templates: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        self._special_tokens = dict(special_tokens)
        environment = _environment()
        try:
            self._compiled = {
                name: environment.from_string(text) for name, text in templates.items()
            }
        except jinja2.TemplateSyntaxError as error:
            raise TokenizerError(
                f"the chat template is no valid jinja: line {error.lineno}: {error.message}"
            ) from error

    def __bool__(self) -> bool:
        return bool(self._compiled)

    def render(
        self,
        messages: list[dict[str, Any]],
        /,
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The conversation as text, ending where the model's answer begins.

        messages: as OpenAI writes them; content is a string or a list of text parts.
        variables: more names for the template, such as enable_thinking=False.
        Raises InvalidParameterError where the template refuses the conversation, or there is none.
        """
        template = self._choose(tools)
        names = {**self._special_tokens, **variables}
        names |= {
            "messages": [plain_message(message) for message in messages],
            "tools": tools or None,
            "documents": variables.get("documents"),
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return template.render(names)
        except _REFUSALS as error:
            raise InvalidParameterError(
                "messages", f"the model's chat template refuses them: {error}"
            ) from error

    def _choose(self, tools: list[dict[str, Any]] | None) -> jinja2.Template:
        names = (_FOR_TOOLS, _DEFAULT) if tools else (_DEFAULT,)
        for name in names:
            if name in self._compiled:
                return self._compiled[name]
        if len(self._compiled) == 1:
            return next(iter(self._compiled.values()))
        raise InvalidParameterError(
            "messages",
            "the model has no chat template; give one with --chat-template or use /v1/completions",
        )


def plain_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as templates expect it: content a string, arguments of tool calls an object."""
    plain = dict(message)
    content = plain.get("content")
    if content is None:
        plain["content"] = ""
    elif isinstance(content, list):
        plain["content"] = "\n".join(_text_of(part) for part in content)
    elif not isinstance(content, str):
        kind = type(content).__name__
        raise InvalidParameterError("messages", f"content is text or a list of parts, no {kind}")
    calls = plain.get("tool_calls")
    if calls:
        if not isinstance(calls, list):
            raise InvalidParameterError("messages", "tool_calls must be a list")
        plain["tool_calls"] = [_plain_call(call) for call in calls]
    elif "tool_calls" in plain:
        del plain["tool_calls"]
    return plain


def _text_of(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type", "?") if isinstance(part, Mapping) else type(part).__name__
    raise InvalidParameterError("messages", f"content of type {kind!r} is not supported, only text")


def _plain_call(call: Any) -> Any:
    if not isinstance(call, Mapping) or not isinstance(call.get("function"), Mapping):
        return call
    function = dict(call["function"])
    if isinstance(function.get("arguments"), str):
        try:
            function["arguments"] = json.loads(function["arguments"] or "{}")
        except (ValueError, RecursionError) as error:
            raise InvalidParameterError(
                "messages", f"the arguments of tool call {function.get('name')!r}: {error}"
            ) from error
    return {**call, "function": function}


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words for training; here it only groups."""

    tags = {"generation"}  # noqa: RUF012  (declared so by jinja)

    def parse(self, parser: Parser) -> Node | list[Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return Scope(body).set_lineno(line)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> str:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
