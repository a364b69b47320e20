"""What an answer must look like: a grammar as the user gave it, not yet compiled."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from hpcserve.errors import InvalidParameterError

KINDS = ("json_schema", "json_object", "regex", "ebnf", "structural_tag")

#: A compiler's work grows faster than its input; nobody writes a schema of this size by hand.
MAX_CHARS = 1 << 20
#: Spaces and line ends in a row that JSON may have: enough to indent it, and no small model gets
#: lost in them.
MAX_JSON_WHITESPACE = 20


class Grammar(msgspec.Struct, frozen=True):
    """Tokens that would leave the grammar are never sampled; the answer ends when it is complete.

    kind: one of KINDS.  text: JSON of a schema or of a structural tag (text with tags inside which
    a grammar holds, as xgrammar describes it), a regular expression, or EBNF in GBNF's notation
    with a rule `root`; empty for json_object, any JSON object.
    """

    kind: str
    text: str = ""

    @classmethod
    def json_schema(cls, schema: str | bool | Mapping[str, Any]) -> Grammar:
        """Of a schema as JSON text or as an object. Raises InvalidParameterError."""
        return cls("json_schema", _json("json_schema", schema))

    @classmethod
    def structural_tag(cls, tag: str | Mapping[str, Any]) -> Grammar:
        return cls("structural_tag", _json("structural_tag", tag))

    @classmethod
    def json_object(cls) -> Grammar:
        return cls("json_object")

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        return cls("regex", _text("regex", pattern))

    @classmethod
    def ebnf(cls, rules: str) -> Grammar:
        return cls("ebnf", _text("ebnf", rules))

    @classmethod
    def choice(cls, choices: Sequence[str]) -> Grammar:
        """One of these texts."""
        texts = choices if isinstance(choices, list | tuple) else ()
        if not texts or not all(isinstance(text, str) and text for text in texts):
            raise InvalidParameterError("choice", "it needs a list of texts that are not empty")
        return cls(
            "ebnf", "root ::= " + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)
        )

    def validate(self) -> None:
        """Raise InvalidParameterError for what no compiler needs to look at."""
        if self.kind not in KINDS:
            raise InvalidParameterError(
                "grammar", f"there is no kind {self.kind!r}; choose one of {', '.join(KINDS)}"
            )
        if not self.text.strip() and self.kind != "json_object":
            raise InvalidParameterError(self.kind, "it is empty")
        if len(self.text) > MAX_CHARS:
            raise InvalidParameterError(
                self.kind, f"{len(self.text)} characters are more than {MAX_CHARS}"
            )


def _text(name: str, given: str) -> str:
    if not isinstance(given, str):
        raise InvalidParameterError(name, f"it is a {type(given).__name__}, not a text")
    return given


def _json(name: str, given: str | bool | Mapping[str, Any]) -> str:
    """JSON text of an object, its keys in their order: that is the order of the answer's."""
    try:
        value = json.loads(given) if isinstance(given, str) else given
        if isinstance(value, dict | bool):
            return json.dumps(value)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidParameterError(name, f"it is no valid JSON: {error}") from error
    raise InvalidParameterError(name, f"it is a {type(value).__name__}, not an object")
