"""SGLang's native API: the body of POST /generate."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from hpcserve.errors import InvalidParameterError
from hpcserve.protocol.body import Priority, as_tuple, parse_body, token_biases
from hpcserve.protocol.grammars import GrammarFields, asked_grammar
from hpcserve.sampling_params import SamplingParams

DEFAULT_MAX_NEW_TOKENS = 128


class GenerateSampling(GrammarFields):
    """`sampling_params`, under SGLang's names. A name that nobody knows is an error.

    null means the default, but for max_new_tokens: there, up to the context length. 0 of them asks
    for the prompt alone, most often its log-probabilities; the engine always makes one.
    """

    model_config = ConfigDict(extra="allow")

    max_new_tokens: int | None = DEFAULT_MAX_NEW_TOKENS
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[str, float] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    no_stop_trim: bool = False
    n: int = 1
    sampling_seed: int | None = None
    seed: int | None = None

    def to_params(self, *, logprobs: int | None, prompt_logprobs: int | None) -> SamplingParams:
        unknown = sorted(self.model_extra or {})
        if unknown:
            raise InvalidParameterError("sampling_params", f"there is no {unknown[0]!r}")
        return SamplingParams(
            max_tokens=1 if self.max_new_tokens == 0 else self.max_new_tokens,
            min_tokens=self.min_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            repetition_penalty=self.repetition_penalty,
            logit_bias=token_biases(self.logit_bias),
            stop=as_tuple(self.stop),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=self.ignore_eos,
            skip_special_tokens=self.skip_special_tokens,
            include_stop_str_in_output=self.no_stop_trim,
            n=self.n,
            seed=self.seed if self.sampling_seed is None else self.sampling_seed,
            grammar=asked_grammar(self),
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )


class GenerateBody(BaseModel):
    """One prompt, or a list of them; then each other field is one value, or a list as long.

    logprob_start_len: -1 gives log-probabilities of the output only, k of the prompt from there.
    """

    model_config = ConfigDict(extra="allow")

    text: str | list[str] | None = None
    input_ids: list[int] | list[list[int]] | None = None
    sampling_params: dict[str, Any] | list[dict[str, Any]] | None = None
    rid: str | list[str] | None = None
    return_logprob: bool | list[bool] | None = None
    logprob_start_len: int | list[int] | None = None
    top_logprobs_num: int | list[int] | None = None
    return_text_in_logprobs: bool | None = None
    stream: bool | None = None
    priority: Priority | None = None

    @property
    def is_single(self) -> bool:
        """Whether one prompt was given, not in a list: then the answer is no list either."""
        if self.text is not None:
            return isinstance(self.text, str)
        return bool(self.input_ids) and isinstance((self.input_ids or [0])[0], int)

    @property
    def prompt_field(self) -> str:
        """The field that was given."""
        return "input_ids" if self.text is None else "text"

    def prompts(self) -> list[str | list[int]]:
        """One entry per prompt. Raises InvalidParameterError."""
        if (self.text is None) == (self.input_ids is None):
            raise InvalidParameterError("text", "give either text or input_ids")
        given: Any = self.input_ids if self.text is None else self.text
        if not given:
            raise InvalidParameterError(self.prompt_field, "it is empty")
        return [given] if self.is_single else list(given)

    def asks_only_prompt(self, number: int) -> bool:
        """Whether the answer to prompt `number` shall hold no token."""
        given = self.sampling_params
        one = given[number] if isinstance(given, list) else given
        return one is not None and one.get("max_new_tokens") == 0

    def of_each(self, name: str, count: int) -> list[Any]:
        """A field's value for each of `count` prompts."""
        value = getattr(self, name)
        if isinstance(value, list):
            if len(value) != count:
                raise InvalidParameterError(name, f"{len(value)} values for {count} prompts")
            return value
        return [value] * count

    def params_of_each(self, count: int) -> list[SamplingParams]:
        found = []
        for given, wanted, start, top in zip(
            self.of_each("sampling_params", count),
            self.of_each("return_logprob", count),
            self.of_each("logprob_start_len", count),
            self.of_each("top_logprobs_num", count),
            strict=True,
        ):
            num_top = (top or 0) if wanted else None
            of_prompt = num_top if start is not None and start >= 0 else None
            said = {
                name: value
                for name, value in (given or {}).items()
                if value is not None or name == "max_new_tokens"
            }
            sampling = parse_body(GenerateSampling, said)
            found.append(sampling.to_params(logprobs=num_top, prompt_logprobs=of_prompt))
        return found
