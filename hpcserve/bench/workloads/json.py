"""`json`: answers that a JSON schema constrains; three fixed schemas in turn.

Every schema bounds its answers, so a model with random weights ends them too. With `--free` the
same requests run without the schema, to show what the constraint costs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from hpcserve.bench.record import RequestRecord
from hpcserve.bench.request import BenchRequest
from hpcserve.bench.token_source import TokenSource
from hpcserve.bench.workloads.base import CountedWorkload
from hpcserve.config.option import option

_COLOR = {"type": "string", "enum": ["red", "green", "blue", "black", "white"]}
_FLAG = {"type": "boolean"}


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_POINT = _object(color=_COLOR, filled=_FLAG)

#: name -> JSON schema.
SCHEMAS: dict[str, dict[str, Any]] = {
    "flat": _object(color=_COLOR, size={"type": "string", "enum": ["S", "M", "L"]}, in_stock=_FLAG),
    "nested": _object(first=_POINT, second=_object(inner=_POINT, seen=_FLAG), done=_FLAG),
    "array": _object(colors={"type": "array", "items": _COLOR, "minItems": 2, "maxItems": 6}),
}


def _fits(text: str, schema: dict[str, Any]) -> bool:
    """Whether `text` is JSON with exactly the properties of `schema`, of the right kinds."""
    try:
        return _matches(json.loads(text), schema)
    except ValueError:
        return False


def _matches(value: Any, schema: dict[str, Any]) -> bool:
    """Checks the few keywords that the schemas above use."""
    kind = schema["type"]
    if kind == "object":
        properties = schema["properties"]
        return (
            isinstance(value, dict)
            and set(value) == set(properties)
            and all(_matches(value[name], inner) for name, inner in properties.items())
        )
    if kind == "array":
        return (
            isinstance(value, list)
            and schema["minItems"] <= len(value) <= schema["maxItems"]
            and all(_matches(item, schema["items"]) for item in value)
        )
    if kind == "boolean":
        return isinstance(value, bool)
    return value in schema["enum"]


@dataclass(frozen=True)
class JsonWorkload(CountedWorkload):
    keeps_text = True

    input_len: int = option(256, "--input-len", help="tokens of a prompt")
    output_len: int = option(256, "--output-len", help="most tokens of an answer")
    free: bool = option(False, "--free", help="ask for the same lengths without a schema")

    def build(self, source: TokenSource) -> list[BenchRequest]:
        names = list(SCHEMAS)
        return [
            self._request(names[index % len(names)], source) for index in range(self.num_requests)
        ]

    def judge(self, requests: list[BenchRequest], records: list[RequestRecord]) -> dict[str, Any]:
        """How many answers hold what their schema asks for, and how many were cut before the end."""
        if self.free:
            return {}
        good = [one for one in records if one.ok]
        cut = sum(one.finish_reason == "length" for one in good)
        valid = sum(_fits(one.text, SCHEMAS[str(requests[one.index].group)]) for one in good)
        share = valid / len(good) if good else 0.0
        return {"json_valid": valid, "json_cut": cut, "json_valid_share": share}

    def _request(self, name: str, source: TokenSource) -> BenchRequest:
        schema = {"type": "json_schema", "json_schema": {"name": name, "schema": SCHEMAS[name]}}
        return BenchRequest(
            prompt_token_ids=source.tokens(self.input_len),
            max_tokens=self.output_len,
            group=name,
            # A constrained answer ends where its grammar does.
            ignore_eos=self.free,
            body={} if self.free else {"response_format": schema},
        )


EntryClass = JsonWorkload
