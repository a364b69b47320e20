"""What every request body shares: parsing with errors that name the field, sampling fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hpcserve.errors import InvalidParameterError, RequestError
from hpcserve.protocol.grammars import GrammarFields, asked_grammar
from hpcserve.sampling_params import SamplingParams

#: Fields that other servers know and that would change the answer: better refused than ignored.
UNSUPPORTED = frozenset(
    {
        "allowed_token_ids",
        "audio",
        "audio_data",
        "bad_words",
        "chat_template",
        "custom_logit_processor",
        "custom_params",
        "echo",
        "function_call",
        "functions",
        "grammar",
        "image_data",
        "input_embeds",
        "logits_processors",
        "lora_path",
        "prompt_embeds",
        "prompt_logprobs",
        "return_hidden_states",
        "return_token_ids",
        "return_tokens_as_token_ids",
        "session_params",
        "stop_regex",
        "suffix",
        "token_ids_logprob",
        "truncate_prompt_tokens",
        "use_beam_search",
        "video_data",
        "web_search_options",
    }
)

Body = TypeVar("Body", bound=BaseModel)
#: What fits into the message to the core.
Priority = Annotated[int, Field(ge=-(2**31), lt=2**31)]


class SamplingBody(GrammarFields):
    """The sampling fields of OpenAI's bodies, with what vLLM and SGLang add to them.

    Fields that nobody here knows are tolerated, since clients send all kinds of labels.
    """

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    no_stop_trim: bool | None = None
    n: int | None = None
    best_of: int | None = None
    seed: int | None = None
    response_format: dict[str, Any] | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    priority: Priority | None = None
    rid: str | None = None

    def check(self) -> None:
        """Refuse what would need something this server lacks."""
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise InvalidParameterError("best_of", "only the same number as n is supported")

    @property
    def include_usage(self) -> bool:
        return bool((self.stream_options or {}).get("include_usage"))


def parse_body(kind: type[Body], data: bytes | str | Mapping[str, Any]) -> Body:
    """A body from JSON or from an object.

    Raises InvalidParameterError that names the first wrong field, RequestError for broken JSON.
    """
    try:
        if isinstance(data, bytes | str):
            body = kind.model_validate_json(data)
        else:
            body = kind.model_validate(data)
    except ValidationError as error:
        raise _named(error) from None
    refuse_unsupported(body.model_extra or {})
    return body


def refuse_unsupported(fields: Mapping[str, Any]) -> None:
    """Raise for a field of UNSUPPORTED that is set to something."""
    for name, value in fields.items():
        if name in UNSUPPORTED and value not in (None, False, "", [], {}):
            raise InvalidParameterError(name, "this server does not support it; leave it out")


def sampling_params(body: SamplingBody, defaults: Mapping[str, Any], **more: Any) -> SamplingParams:
    """The body's sampling fields, with `more` of them.

    defaults: fields for what is not set; see config/generation.py.
    """
    given: dict[str, Any] = {
        name: getattr(body, name)
        for name in (
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "frequency_penalty",
            "presence_penalty",
            "repetition_penalty",
            "max_tokens",
            "min_tokens",
            "ignore_eos",
            "skip_special_tokens",
            "n",
            "seed",
        )
    }
    given["grammar"] = asked_grammar(body, body.response_format)
    given["stop"] = as_tuple(body.stop)
    given["stop_token_ids"] = tuple(body.stop_token_ids or ())
    given["logit_bias"] = token_biases(body.logit_bias)
    given["include_stop_str_in_output"] = body.include_stop_str_in_output or body.no_stop_trim
    given |= more
    said = {name: value for name, value in given.items() if value is not None}
    return SamplingParams(**{**defaults, **said})


def as_tuple(stop: str | list[str] | None) -> tuple[str, ...]:
    if stop is None:
        return ()
    return (stop,) if isinstance(stop, str) else tuple(stop)


def token_biases(given: Mapping[str, float] | None) -> dict[int, float] | None:
    """JSON has only string keys; these are token ids."""
    if not given:
        return None
    try:
        return {int(key): bias for key, bias in given.items()}
    except ValueError as error:
        raise InvalidParameterError("logit_bias", f"keys are token ids: {error}") from error


def _named(error: ValidationError) -> RequestError:
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return RequestError(f"the body is no valid JSON: {first['ctx']['error']}")
    # A union reports its branches as a tail of the location; the field's own name stands first.
    name = str(first["loc"][0]) if first["loc"] else "body"
    return InvalidParameterError(name, first["msg"])
