"""How tokens are chosen, for one request: shared by HTTP, batch, `LLM` and the workers."""

from __future__ import annotations

import math
import re

import msgspec

from hpcserve.errors import InvalidParameterError
from hpcserve.grammar import Grammar

#: Below this a temperature is treated as greedy: dividing by it would overflow fp32 logits.
GREEDY_TEMPERATURE = 1e-5
#: Counts travel as 64 bits and reach the device as 32.
_MOST = 2**31 - 1


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Sampling parameters of one request.

    max_tokens: most tokens to generate; None means up to the context length.
    min_tokens: neither EOS, nor a stop token, nor a stop string ends the text before this many.
    temperature: 0 is greedy.  top_k: -1 is off.  top_p: 1 is off.  min_p: 0 is off.
    stop: strings that end the text (not part of it unless `include_stop_str_in_output`), or one.
    stop_token_ids: tokens that end the text, besides the model's own EOS tokens.
    n: how many independent answers.
    seed: the same request and seed give the same tokens whatever else runs; None draws one.
    logprobs: None is off; 0 the chosen token's, k the k likeliest tokens' as well. They are
        log-probabilities of the model itself, before temperature and penalties.
    prompt_logprobs: likewise for the tokens of the prompt.
    grammar: what the answer must look like; not together with min_tokens.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    n: int = 1
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        # One text, as all APIs take it; left alone it would be a sequence of its characters.
        if isinstance(self.stop, str):
            msgspec.structs.force_setattr(self, "stop", (self.stop,))

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_TEMPERATURE or self.top_k == 1

    @property
    def has_penalties(self) -> bool:
        return (
            self.frequency_penalty != 0.0
            or self.presence_penalty != 0.0
            or self.repetition_penalty != 1.0
        )

    def validate(self, *, vocab_size: int | None = None) -> None:
        """Raise InvalidParameterError that names the first parameter out of range, or of the wrong
        type: the core could not read it, and drops what it cannot read."""
        self._check_types()
        _in_range("temperature", self.temperature, 0.0, math.inf)
        _in_range("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _in_range("min_p", self.min_p, 0.0, 1.0)
        _in_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _in_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _in_range("repetition_penalty", self.repetition_penalty, 0.0, math.inf, open_low=True)
        _in_range("n", self.n, 1, 128)
        for name in ("max_tokens", "min_tokens", "top_k"):
            if (getattr(self, name) or 0) > _MOST:
                raise InvalidParameterError(name, f"{getattr(self, name)} is more than {_MOST}")
        if self.top_k < 1 and self.top_k not in (-1, 0):
            raise InvalidParameterError("top_k", f"{self.top_k} is not -1 (off) or at least 1")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise InvalidParameterError("max_tokens", f"{self.max_tokens} is less than 1")
        if self.min_tokens < 0:
            raise InvalidParameterError("min_tokens", f"{self.min_tokens} is less than 0")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidParameterError(
                "min_tokens", f"{self.min_tokens} is more than max_tokens {self.max_tokens}"
            )
        if self.seed is not None and not -(2**63) <= self.seed < 2**64:
            raise InvalidParameterError("seed", f"{self.seed} does not fit in 64 bits")
        for name in ("logprobs", "prompt_logprobs"):
            count = getattr(self, name)
            if count is not None:
                _in_range(name, count, 0, 20)
        if any(text == "" for text in self.stop):
            raise InvalidParameterError("stop", "a stop string is empty")
        if self.grammar is not None:
            self.grammar.validate()
            if self.min_tokens:
                raise InvalidParameterError("min_tokens", "a grammar says itself when it may end")
        self._validate_token_ids(vocab_size)

    def _check_types(self) -> None:
        try:
            msgspec.convert(msgspec.structs.asdict(self), SamplingParams)
        except msgspec.ValidationError as error:
            # "Expected `int`, got `str` - at `$.max_tokens`", or "... - at `key` in `$.logit_bias`"
            text, _, place = str(error).partition(" - at ")
            name = re.findall(r"\w+", place.partition("$.")[2])[0]
            raise InvalidParameterError(name, text.replace("Expected", "expected", 1)) from None

    def _validate_token_ids(self, vocab_size: int | None) -> None:
        for token_id, bias in (self.logit_bias or {}).items():
            _in_range("logit_bias", bias, -100.0, 100.0)
            _token_id("logit_bias", token_id, vocab_size)
        for token_id in self.stop_token_ids:
            _token_id("stop_token_ids", token_id, vocab_size)


def _in_range(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    # NaN fails both comparisons, so it is refused as well.
    if not (low < value if open_low else low <= value) or not value <= high or math.isinf(value):
        bracket = "(" if open_low else "["
        if high == math.inf:
            least = "above" if open_low else "at least"
            raise InvalidParameterError(name, f"{value} is no finite number of {least} {low}")
        raise InvalidParameterError(name, f"{value} is not in {bracket}{low}, {high}]")


def _token_id(name: str, token_id: int, vocab_size: int | None) -> None:
    if token_id < 0 or (vocab_size is not None and token_id >= vocab_size):
        limit = f" (the vocabulary has {vocab_size})" if vocab_size is not None else ""
        raise InvalidParameterError(name, f"token id {token_id} is out of range{limit}")
